from .dataset import LabelledDataset as LabelledDataset
from .dataset import Source as Source
from .tasks import Stream as Stream
from .tasks import Task as Task
from .tasks import make_stream as make_stream
