"""How is a model asked that runs in this process?   From a folder that transformers can load."""

import time
from importlib import import_module
from pathlib import Path
from typing import Any

from backends.evals.asking import Answer, AskError, Score


class Local:
    """A causal language model with its tokenizer; slow, and meant for small ones. Needs torch and transformers.
    `template`: variables of the chat template, as a server takes them in `chat_template_kwargs`."""

    def __init__(self, place: Path, template: dict[str, Any]) -> None:
        self._torch: Any = import_module("torch")
        self._template = template
        transformers: Any = import_module("transformers")
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(place)
        self._model = transformers.AutoModelForCausalLM.from_pretrained(place).eval()

    def answer(self, prompt: str, tokens: int) -> Answer:
        """Greedy decoding, with the tokenizer's chat template if it has one, else after the prompt and a newline."""
        started = time.perf_counter()
        text, templated = f"{prompt}\n", bool(self._tokenizer.chat_template)
        if templated:
            said = [{"role": "user", "content": prompt}]
            text = self._tokenizer.apply_chat_template(
                said, tokenize=False, add_generation_prompt=True, **self._template
            )
        # A template writes the beginning-of-text token itself; a second one is a prompt that no model was trained on.
        asked = self._tokenizer(text, add_special_tokens=not templated, return_tensors="pt")["input_ids"]
        with self._torch.inference_mode():
            whole = self._model.generate(asked, max_new_tokens=tokens, do_sample=False)[0]
        made = whole[asked.shape[1] :]
        cut = len(made) == tokens and made[-1].item() != self._tokenizer.eos_token_id
        said_text = self._tokenizer.decode(made, skip_special_tokens=True)
        return Answer(said_text, cut, asked.shape[1], len(made), time.perf_counter() - started)

    def score(self, text: str) -> Score:
        """The text's likelihood, from one forward. Raises AskError for a text of less than two tokens."""
        tokens = self._tokenizer(text, return_tensors="pt")["input_ids"]
        if tokens.shape[1] < 2:
            raise AskError("a text of less than two tokens has no likelihood")
        with self._torch.inference_mode():
            logits = self._model(tokens).logits[0, :-1].double()
        found = self._torch.log_softmax(logits, -1).gather(1, tokens[0, 1:, None])
        return Score(-found.sum().item(), found.numel())
