"""The LoRA adapters of reward models, injected into the language model of their one backbone."""

from collections.abc import Mapping

from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn

from fgaif_ray.vlm.backbone import Backbone
from fgaif_ray.vlm.lora import with_own_layers


class LoRAAdapters(nn.Module):
    """Any number of adapters in a backbone's model, which is changed in place; one of them is active at a time."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self._backbone = backbone
        self._model: PeftModel | None = None
        self._active: tuple[str, bool] | None = None

    def add(self, name: str, config: LoraConfig) -> None:
        """Add an untrained adapter, whose initial weights are drawn here."""
        if not self._backbone.quantised:  # PEFT has layers for quantised ones
            with_own_layers(config)
        if self._model is None:
            self._model = PeftModel(self._backbone.model, config, adapter_name=name)
        else:
            self._model.add_adapter(name, config)
        self._model.eval()
        self.activate(name, trainable=False)

    def activate(self, name: str, *, trainable: bool) -> None:
        """Have the backbone compute with an adapter; its parameters require gradients only where it is trainable."""
        if self._active != (name, trainable):
            self._peft.set_adapter(name, inference_mode=not trainable)
            self._active = (name, trainable)

    def trainable_parameters(self) -> list[nn.Parameter]:
        """The parameters that require gradients, in a fixed order."""
        return [value for _, value in self._peft.named_parameters() if value.requires_grad]

    def config(self, name: str) -> PeftConfig:
        """The configuration that an adapter was added with."""
        return self._peft.peft_config[name]

    def weights(self, name: str) -> dict[str, Tensor]:
        """The weights of an adapter, named as in PEFT's files."""
        state: dict[str, Tensor] = get_peft_model_state_dict(self._peft, adapter_name=name, save_embedding_layers=False)
        return state

    def set_weights(self, name: str, weights: Mapping[str, Tensor]) -> None:
        """Set the weights of an adapter; names and shapes are those of ``weights``."""
        set_peft_model_state_dict(self._peft, dict(weights), adapter_name=name)

    @property
    def _peft(self) -> PeftModel:
        if self._model is None:
            raise ValueError("there is no reward model yet: add or load one")
        return self._model
