"""Models without ``torch.compile``: a compiled call would not notice that layers are replaced."""

from torch import nn


def uncompiled(model: nn.Module) -> nn.Module:
    """Return ``model`` with every compiled module replaced by the module that was compiled, in place.

    Compile the result again after its layers are replaced.
    """
    model = _original(model)
    for module in list(model.modules()):
        # ``nn.Module.compile`` keeps the compiled call here.
        module._compiled_call_impl = None
        for name, child in module._modules.items():
            if child is not None:
                module._modules[name] = _original(child)
    return model


def _original(module: nn.Module) -> nn.Module:
    # ``torch._dynamo``, which defines the class, takes seconds to import.
    while type(module).__name__ == "OptimizedModule":
        inner = module._orig_mod
        assert isinstance(inner, nn.Module)
        module = inner
    return module
