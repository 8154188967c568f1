"""Which hyperparameters are really best for a fine-tuned encoder? The public names, each imported when it is first used."""

__version__ = "0.1.0"

from importlib import import_module as _import_module

_HOMES = {
    "BERTClassifier": "model.classifier",
    "Config": "config.schema",
    "HParams": "config.hparams",
    "Predictor": "serving.predictor",
    "UserError": "core.errors",
    "calculate_gradient_accumulation": "model.memory",
    "cross_validate": "training.cross_validation",
    "evaluate": "confirmation.evaluate",
    "focal_loss": "model.classifier",
    "get_gpu_vram_info": "model.memory",
    "load_config": "config.load",
    "load_data": "data.study_data",
    "probe_max_batch_size": "model.memory",
    "run_hpo": "execution.study",
    "run_hpo_worker": "execution.study",
    "run_single_fold": "training.cross_validation",
    "save_plots": "plotting.plots",
    "study_summary": "results.report",
    "train_setting": "execution.single_setting",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> object:
    """The public name, imported from its module; PyTorch is loaded only by the names that need it."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(_import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
