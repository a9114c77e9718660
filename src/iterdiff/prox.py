"""The public address of `iterdiff.problems.prox` and `iterdiff.problems.projections`."""

from iterdiff.problems.projections import affine_set as affine_set
from iterdiff.problems.projections import fused_lasso as fused_lasso
from iterdiff.problems.projections import group_lasso as group_lasso
from iterdiff.problems.projections import half_space as half_space
from iterdiff.problems.projections import huber as huber
from iterdiff.problems.projections import hyperplane as hyperplane
from iterdiff.problems.projections import l1_ball as l1_ball
from iterdiff.problems.projections import l2_ball as l2_ball
from iterdiff.problems.projections import linf_ball as linf_ball
from iterdiff.problems.projections import nuclear_norm as nuclear_norm
from iterdiff.problems.projections import second_order_cone as second_order_cone
from iterdiff.problems.projections import transport_polytope as transport_polytope
from iterdiff.problems.prox import box as box
from iterdiff.problems.prox import elastic_net as elastic_net
from iterdiff.problems.prox import nonnegative as nonnegative
from iterdiff.problems.prox import simplex as simplex
from iterdiff.problems.prox import soft_threshold as soft_threshold
from iterdiff.problems.prox import weakly_active as weakly_active
