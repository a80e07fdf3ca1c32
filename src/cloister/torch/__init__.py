"""PyTorch with protected parameters: ``save`` and ``load`` as ``torch.save`` and ``torch.load``, but sealed.

    cloister.torch.save(model.state_dict(), "resnet50.sealed", key="kbs:///models/dek/resnet50")
    model.load_state_dict(cloister.torch.load("resnet50.sealed", model_id="resnet50"))

The key is asked for by itself, from a key cache or a key broker. Nothing is pickled, and no plaintext is on a
disk: each tensor is decrypted straight into its own storage. PyTorch is imported when it is first needed.
"""

from cloister.torch.reading import load
from cloister.torch.writing import save

__all__ = ["load", "save"]
