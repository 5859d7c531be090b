from .accumulator import ImportanceAccumulator as ImportanceAccumulator
from .accumulator import merge_importance as merge_importance
from .fisher import FisherLabels as FisherLabels
from .fisher import fisher_importance as fisher_importance
from .fisher import squared_gradient_importance as squared_gradient_importance
from .local_mas import local_mas_importance as local_mas_importance
from .mas import mas_importance as mas_importance
from .uniform import uniform_importance as uniform_importance
