/* The figure of the front page: gradient descent on theta x^2 / 2 - b x, and its derivative in theta.

   The formulas come first; tests/test_figure.py compares them with iterdiff.trace. */
"use strict";

const Curse = (() => {
  /* Errors after t steps, absolute: of the iterate, and of its unrolled and implicit derivative. */
  function errors({ theta, eta, x0, b }, t) {
    const factor = 1 - eta * theta;
    const start = x0 - b / theta; // e_0
    const slope = b / theta ** 2; // d e_0 / d theta
    const error = factor ** t * start;
    const growth = t === 0 ? 0 : eta * t * factor ** (t - 1) * start;
    return {
      iterate: Math.abs(error),
      unrolled: Math.abs(factor ** t * slope - growth),
      implicit: Math.abs(error / theta),
    };
  }

  /* The iteration at which the unrolled derivative is worst; null if it has no worst one. */
  function peak(values) {
    const { theta, eta, x0, b } = values;
    const factor = 1 - eta * theta;
    if (Math.abs(factor) >= 1) return null;
    const candidates = Array.from({ length: 50 }, (_, t) => t);
    const start = x0 - b / theta;
    if (factor > 0 && start !== 0) {
      const turning = (factor * b) / (theta ** 2 * eta * start) - 1 / Math.log(factor);
      candidates.push(Math.max(0, Math.floor(turning)), Math.max(0, Math.ceil(turning)));
    }
    const height = (t) => errors(values, t).unrolled;
    return candidates.reduce((best, t) => (height(t) > height(best) ? t : best), 0);
  }

  /* What the figure shows, in words. */
  function words(values) {
    const { theta, eta, x0, b } = values;
    const product = eta * theta;
    const number = (value) => Number(value.toPrecision(3)).toString().replace("-", "−");
    if (product >= 2) {
      return (
        `Beyond stability: ηθ = ${number(product)} is at least 2. Every step multiplies the error by ` +
        `1 − ηθ = ${number(1 - product)}: the iterate does not converge, and its derivative grows ` +
        "faster still, by a further factor t. Take a smaller step."
      );
    }
    if (x0 === b / theta) {
      return "The start is the solution: the iterate has no error, and its derivative only loses that of the start.";
    }
    const worst = peak(values);
    const first = errors(values, 0).unrolled;
    const highest = errors(values, worst).unrolled;
    if (worst === 0) {
      return `No burn-in: the derivative is worst at the start, with an error of ${number(highest)}, and improves from there.`;
    }
    const ratio = first === 0 ? "At the start it has no error" : `That is ${number(highest / first)} times its error at the start`;
    return (
      `The derivative of the iterate is worst at step ${worst}, with an error of ${number(highest)}. ${ratio}. ` +
      "The iterate improves from the first step."
    );
  }

  return { errors, peak, words };
})();

if (typeof module !== "undefined") module.exports = Curse;

if (typeof document !== "undefined") {
  (() => {
    const figure = document.getElementById("curse");
    const svg = figure.querySelector("svg");
    const LAST = 4; // decades of iterations
    const BOTTOM = -4, TOP = 4; // decades of errors
    const HEIGHT = 330;
    const CURVES = [
      ["iterate", "iterate", ""],
      ["unrolled", "its derivative, unrolled", ""],
      ["implicit", "its derivative, implicit", "7 4"],
    ];
    const superscript = (n) => String(n).replace(/./g, (c) => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".indexOf(c)]);

    const values = () =>
      Object.fromEntries(
        [...figure.querySelectorAll("input")].map((input) => {
          const value = Number(input.value);
          return [input.name, input.dataset.scale === "log" ? 10 ** value : value];
        }),
      );

    function add(name, attributes, text) {
      const element = document.createElementNS("http://www.w3.org/2000/svg", name);
      for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
      if (text !== undefined) element.textContent = text;
      svg.append(element);
    }

    function draw() {
      const chosen = values();
      for (const input of figure.querySelectorAll("input")) {
        const shown = Number(chosen[input.name].toPrecision(3)).toString();
        figure.querySelector(`output[for="${input.id}"]`).textContent = shown;
        input.setAttribute("aria-valuetext", shown);
      }
      const width = Math.max(280, figure.clientWidth);
      const left = 46, right = width - 10, top = 12, bottom = HEIGHT - 44;
      const across = (t) => left + ((right - left) * Math.log10(t)) / LAST;
      const down = (error) => {
        const level = Math.min(TOP + 1, Math.max(BOTTOM - 1, Math.log10(error)));
        return bottom - ((bottom - top) * (level - BOTTOM)) / (TOP - BOTTOM);
      };
      svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
      svg.replaceChildren();
      add("clipPath", { id: "curse-frame" });
      const frame = document.createElementNS("http://www.w3.org/2000/svg", "rect");
      Object.entries({ x: left, y: top, width: right - left, height: bottom - top }).forEach((pair) =>
        frame.setAttribute(...pair),
      );
      svg.lastChild.append(frame);
      for (let decade = BOTTOM; decade <= TOP; decade += 2) {
        const y = down(10 ** decade);
        add("line", { x1: left, x2: right, y1: y, y2: y, class: "grid" });
        add("text", { x: left - 6, y: y + 4, "text-anchor": "end" }, `10${superscript(decade)}`);
      }
      for (let decade = 0; decade <= LAST; decade++) {
        const x = across(10 ** decade);
        add("line", { x1: x, x2: x, y1: top, y2: bottom, class: "grid" });
        add("text", { x, y: bottom + 18, "text-anchor": decade === LAST ? "end" : "middle" }, `10${superscript(decade)}`);
      }
      add("text", { x: (left + right) / 2, y: HEIGHT - 6, "text-anchor": "middle" }, "step t");
      add("text", { x: left + 6, y: top + 14 }, "absolute error");

      const times = [...new Set(Array.from({ length: 400 }, (_, i) => Math.round(10 ** ((LAST * i) / 399))))];
      for (const [name, , dash] of CURVES) {
        const points = times
          .map((t) => [across(t), Curse.errors(chosen, t)[name]])
          .filter(([, error]) => error > 0)
          .map(([x, error]) => `${x.toFixed(1)},${down(error).toFixed(1)}`);
        add("polyline", { points: points.join(" "), class: name, "stroke-dasharray": dash, "clip-path": "url(#curse-frame)" });
      }
      const worst = Curse.peak(chosen);
      if (worst !== null && worst > 0) {
        const height = Curse.errors(chosen, worst).unrolled;
        const x = across(worst), y = down(height);
        add("circle", { cx: x, cy: y, r: 5, class: "peak", "clip-path": "url(#curse-frame)" });
        const before = x > (left + right) / 2;
        const room = y - 16 > top + 12;
        if (y > top && y < bottom && x < right) {
          add("text", { x: x + (before ? -4 : 4), y: room ? y - 16 : y + 26, "text-anchor": before ? "end" : "start", class: "peak" }, `worst at ${worst}`);
        }
      }
      const said = Curse.words(chosen);
      figure.querySelector("figcaption").textContent = said;
      svg.setAttribute("aria-label", `Errors of the iterate and of its derivatives over the steps, on logarithmic axes. ${said}`);
    }

    figure.addEventListener("input", draw);
    figure.querySelector("button").addEventListener("click", () => {
      for (const input of figure.querySelectorAll("input")) input.value = input.defaultValue;
      draw();
    });
    new ResizeObserver(draw).observe(figure);
    draw();
  })();
}
