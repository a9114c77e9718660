"""The JSON Schema of files of settings, from the types that validate them."""

from typing import Any

from iterdiff.study.catalog import BUILT_IN, MODELS, OWN

LISTS = {
    "type": "object",
    "description": "Dotted keys with lists of values: the study is run for their product.",
    "additionalProperties": {"anyOf": [{"type": "array", "minItems": 1}, {"type": "object"}]},
    "properties": {
        "zip": {
            "type": "object",
            "description": "Dotted keys with lists of equal lengths, whose values go together.",
        }
    },
}


def schema() -> dict[str, Any]:
    """Return the schema: a choice between built-in studies, a table, and the user's own problem.

    Every key is optional that has a default: a file names only what it changes.
    """
    choices, definitions = [], {}
    for built_in in (*BUILT_IN.values(), OWN):
        found = type(built_in.settings).model_json_schema(ref_template="#/$defs/{model}")
        definitions |= found.pop("$defs", {})
        properties = {**found["properties"], "grid": LISTS}
        if built_in is OWN:
            properties.pop("study")
            own = properties["problem"]
            properties["problem"] = {"anyOf": [{"type": "string", "pattern": ":"}, own]}
            choices.append(_choice(built_in.summary, properties, ["problem"]))
        else:
            properties["study"] = {"const": built_in.settings.study}
            choices.append(_choice(built_in.summary, properties, ["study"]))
    for definition in definitions.values():
        if "type" not in definition.get("properties", {}):  # the options of a problem
            definition.pop("required", None)
    for model in MODELS:
        kind = type(BUILT_IN[model].settings.problem).__name__
        options = definitions[kind]["properties"] | {"model": {"const": model}}
        table = {
            **definitions[kind],
            "properties": options,
            "required": ["model", "data", "target"],
        }
        of_study = next(c for c in choices if c["properties"].get("study") == {"const": model})
        properties = {k: v for k, v in of_study["properties"].items() if k != "study"}
        title = f"a table of your own with the model {model}"
        choices.append(_choice(title, {**properties, "problem": table}, ["problem"]))
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A study of iterdiff",
        "anyOf": choices,
        "$defs": definitions,
    }


def _choice(title: str, properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    return {
        "title": title,
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }
