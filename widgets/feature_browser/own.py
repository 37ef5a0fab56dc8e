"""A text of the user's, read once: what every feature does at each of its tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench import sae
from workbench.errors import WorkbenchError
from workbench.model.changes import counted, versions
from workbench.records import Prompt
from workbench_widgets.feature_browser.about import Described, cut_number
from workbench_widgets.spelling import spell_prompt

STRONGEST = 8
TOKENS_SHOWN = 2000


@dataclass(frozen=True)
class Codes:
    """The active features of a text.

    Attributes:
        pieces: its tokens.
        read: whether the dictionary reads each; special tokens it does not.
        tokens, features, values: the codes above 0, an entry each.
    """

    pieces: list[str]
    read: np.ndarray
    tokens: np.ndarray
    features: np.ndarray
    values: np.ndarray

    def of(self, feature: int) -> list[float | None]:
        """One feature at every token; None at tokens that are not read."""
        line = np.zeros(len(self.pieces))
        own = self.features == feature
        line[self.tokens[own]] = self.values[own]
        shown = zip(line, self.read, strict=True)
        return [cut_number(v) if read else None for v, read in shown][:TOKENS_SHOWN]


class Reader:
    """Reads a text with a dictionary; the last text is kept, so that another feature is at once there.

    Args:
        force: read a model that the dictionary was not trained on.
    """

    def __init__(self, dictionary: Any, model: Any, force: bool = False):
        self.dictionary, self.model, self.force = dictionary, model, force
        self._key: Any = None
        self._codes: Codes | None = None

    def frame(self, text: str, feature: int, described: Described) -> dict[str, Any]:
        """Tokens with one feature's activations, and which features are strongest there; a text that
        cannot be read says why."""
        try:
            codes = self.codes(text)
        except WorkbenchError as error:
            return {"text": text, "problem": str(error)}
        return {
            "text": text,
            "pieces": codes.pieces[:TOKENS_SHOWN],
            "values": codes.of(feature),
            "strongest": strongest(codes, described),
        }

    def codes(self, text: str) -> Codes:
        """All active features of a text.

        Raises:
            PromptError: longer than the context.
            WorkbenchError: NaN in the activations.
        """
        key = (text, str(self.model.device), *versions(counted(self.model.hf.parameters())))
        if key != self._key or self._codes is None:
            self._codes, self._key = self._read(Prompt(text=text)), key
        return self._codes

    def _read(self, prompt: Prompt) -> Codes:
        _, _, spelled = spell_prompt(self.model, prompt)
        parts = sae.stream(self.dictionary, self.model, [prompt], force=self.force, progress=False)
        read = np.zeros(len(spelled), bool)
        found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        for part in parts:
            places = part.positions.cpu().numpy()
            read[places] = True
            tokens, features = (part.codes > 0).nonzero(as_tuple=True)
            values = part.codes[tokens, features].float().cpu().numpy()
            found.append((places[tokens.cpu().numpy()], features.cpu().numpy(), values))
        columns = [np.concatenate(column) for column in zip(*found, strict=True)]
        return Codes([one.shown or one.text for one in spelled], read, *columns)


def strongest(codes: Codes, described: Described, most: int = STRONGEST) -> list[dict[str, Any]]:
    """The features that come closest to their largest activation on the corpus, a line each."""
    found = []
    for feature in np.unique(codes.features).tolist():
        largest = described.largest[described.place[feature]] if feature in described.place else 0
        if largest > 0:
            own = codes.features == feature
            values, tokens = codes.values[own], codes.tokens[own]
            k = int(values.argmax())
            found.append((float(values[k]) / largest, feature, float(values[k]), int(tokens[k])))
    return [
        {
            "feature": feature,
            "label": described.label(feature),
            "share": cut_number(share),
            "value": cut_number(value),
            "token": token,
        }
        for share, feature, value, token in sorted(found, key=lambda x: (-x[0], x[1]))[:most]
    ]
