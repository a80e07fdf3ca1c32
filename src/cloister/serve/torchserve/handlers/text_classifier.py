"""``ts.torch_handler.text_classifier``: how likely each class of a text is.

As TorchServe's it answers one request at a time: with batches, only the first text of each would be read.

Source: pytorch/serve 0.12, ts/torch_handler/text_classifier.py (names, cleaning, form of the answer).
"""

from __future__ import annotations

from typing import Any

import torch

from cloister.serve.torchserve.attribution import integrated_gradients
from cloister.serve.torchserve.handlers.text_handler import TextHandler
from cloister.serve.torchserve.text import ngrams_iterator
from cloister.serve.torchserve.util import map_class_to_label


class TextClassifier(TextHandler):
    """Answers label (or class number) to probability, for each class."""

    ngrams = 2
    explanation_steps = 50

    def preprocess(self, data: Any) -> Any:
        """Cleaned n-grams of the first text as numbers of the vocabulary, and its tokens."""
        text = data[0].get("data") or data[0].get("body")
        if isinstance(text, bytes | bytearray):
            text = text.decode("utf-8")
        text = self._expand_contractions(self._remove_html_tags(text).lower())
        text = self._remove_punctuation(self._remove_accented_characters(text))
        tokens = self._tokenize(text)
        numbers = [self.source_vocab[token] for token in ngrams_iterator(tokens, self.ngrams)]
        return torch.as_tensor(numbers, device=self.device), tokens

    def inference(self, data: Any, *args: Any, **kwargs: Any) -> Any:
        """The model's output for one bag of n-grams."""
        numbers, _ = data
        return super().inference(numbers, torch.as_tensor([0], device=self.device))

    def postprocess(self, data: Any) -> Any:
        """All classes of each text."""
        probabilities = torch.nn.functional.softmax(data, dim=0 if data.dim() in (0, 1, 3) else 1)
        return map_class_to_label(probabilities.tolist(), self.mapping)

    def get_insights(self, text_preprocess: Any, _: Any, target: Any = 0) -> Any:
        """How much the bag's embedding counted: integrated gradients from that of as many unknown tokens."""
        numbers, tokens = text_preprocess
        embedding = self.model.embedding
        offsets = torch.as_tensor([0], device=self.device)
        with torch.no_grad():
            start = embedding(torch.zeros_like(numbers), offsets)
            end = embedding(numbers, offsets)

        def forward(difference: Any) -> Any:
            hook = embedding.register_forward_hook(lambda *_: start + difference)
            try:
                return self.model(numbers, offsets)
            finally:
                hook.remove()

        steps = self.explanation_steps
        attributions = integrated_gradients(forward, end - start, int(target), n_steps=steps)
        importances = self.summarize_attributions(attributions).tolist()
        return [{"importances": importances, "words": self.get_word_token(tokens)}]
