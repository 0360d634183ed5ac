"""What leaves rumpun: folders in safetensors that load elsewhere without code of ours, checked before they count."""

from train.export.from_checkpoint import checkpoint_to_model
from train.export.layout import write_folder
from train.export.parity import PROBES, parity
from train.export.stage import ExportConfig, export_checkpoint, export_model

__all__ = [
    "PROBES",
    "ExportConfig",
    "checkpoint_to_model",
    "export_checkpoint",
    "export_model",
    "parity",
    "write_folder",
]
