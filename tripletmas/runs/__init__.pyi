from .directory import RunDirectory as RunDirectory
from .experiment import run_experiment as run_experiment
from .loop import train_stream as train_stream
from .options import TrainConfig as TrainConfig
