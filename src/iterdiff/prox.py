"""The public address of `iterdiff.problems.prox`."""

from iterdiff.problems.prox import box as box
from iterdiff.problems.prox import elastic_net as elastic_net
from iterdiff.problems.prox import nonnegative as nonnegative
from iterdiff.problems.prox import simplex as simplex
from iterdiff.problems.prox import soft_threshold as soft_threshold
from iterdiff.problems.prox import weakly_active as weakly_active
