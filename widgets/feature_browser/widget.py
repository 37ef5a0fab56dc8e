"""FeatureBrowser: the features of a dictionary, one opened, a text read with it, an edit made of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from workbench import worker
from workbench.errors import WorkbenchError
from workbench.model.model import Model
from workbench.model.tokens import as_prompts
from workbench.records import Prompt
from workbench.sae.dashboards.board import Dashboard
from workbench.sae.dictionary import Dictionary
from workbench.sae.fitting import check_fits
from workbench.tensors import Intervention
from workbench_widgets.base import Widget
from workbench_widgets.feature_browser.about import Described, cut_number, expect, same_name
from workbench_widgets.feature_browser.finding import ORDERS, SHOWN, find, rankings_of
from workbench_widgets.feature_browser.own import Reader
from workbench_widgets.feature_browser.steering import MODES, STEP, cell, checked, edit_of, modes_of
from workbench_widgets.feature_browser.still import still
from workbench_widgets.frames import pack
from workbench_widgets.live_edit.widget import LiveEdit
from workbench_widgets.stills.words import cut, number

LISTED = 100
"""Features of a list that are sent at once; a button asks for as many again."""
LONGEST_LABEL = 90
EXAMPLES = 10
KEPT = 24
KEPT_BYTES = 300_000
"""Of the features that a page keeps; base64 adds a third."""
LONGEST_TEXT = 20_000
ASKS = ("feature", "query", "sort", "reverse", "show", "limit", "text")


class FeatureBrowser(Widget):
    """Search a dictionary's features, open one, read a text of your own with it, steer with it.

    The list is searched by words in labels, promoted tokens and examples, sorted by F1 of the label,
    largest activation, density, or a ranking of yours, and filtered by density. An opened feature shows how
    often and how much it is active, its strongest examples with every token in the warmth of its
    activation, the tokens that it promotes and suppresses, and its relatives, a click away. A slider
    makes it an edit: `add`, `clamp` or `scale`. Labels come from the data alone.

    Args:
        dashboard: what `sae.dashboard` returns.
        dictionary: the one that it is of; reads own texts and makes edits.
        model: reads own texts and is steered.
        prompts: those that `steer` shows; without them the own text.
        rankings: orders of the list by name, as `sae.search` returns them.
        feature: the one that is opened first; the first of the list where left out.
        examples: how many of a feature are shown.
        force: accept a dictionary of another name, or of another model than `model`.
        link: widgets of the same text share their selected feature.

    Example:
        board = sae.dashboard(dictionary, model, prompts)
        browser = FeatureBrowser(board, dictionary, model, prompts)
        browser.search("carry", sort="density").found
        browser.choose(17, mode="clamp", strength=0).to_record()    # feature 17 switched off

    Raises:
        WorkbenchError: the dictionary fits neither dashboard nor model, or a ranking is none.
    """

    folder = "feature_browser"

    def __init__(
        self,
        dashboard: Dashboard,
        dictionary: Dictionary | None = None,
        model: Model | None = None,
        prompts: Any = None,
        *,
        rankings: Mapping[str, Any] | None = None,
        feature: int | None = None,
        examples: int = EXAMPLES,
        force: bool = False,
        link: str = "",
    ):
        self._described = Described(dashboard)
        _fitting(dashboard, dictionary, model, force)
        self._rankings = rankings_of(rankings, self._described)
        self._dictionary, self._model = dictionary, model
        self._prompts = [] if prompts is None else as_prompts(prompts)
        self._examples = max(1, int(examples))
        both = dictionary is not None and model is not None
        self._reader = Reader(dictionary, model, force) if both else None
        self._shown_live: LiveEdit | None = None
        sort = next(iter(self._rankings), "label")
        found = find(self._described, self._rankings, sort=sort) or self._described.features
        first = found[0] if feature is None else feature
        self._described.row(first)
        spec = {
            "feature": int(first),
            "query": "",
            "sort": sort,
            "reverse": False,
            "show": "alive",
            "limit": LISTED,
            "text": "",
            "mode": "add",
            "strength": MODES["add"]["start"],
        }
        super().__init__(spec=spec, meta=self._about(), link=link)
        self.refresh()

    def _about(self) -> dict[str, Any]:
        board, allowed = self._described.dashboard, modes_of(self._dictionary)
        return {
            "title": f"{board.dictionary_name or 'Features'} at {board.site}",
            "features": len(self._described.features),
            "n_tokens": int(board.n_tokens),
            "sorts": [{"name": n, "words": w} for n, w in ORDERS.items()]
            + [{"name": n, "words": n} for n in self._rankings],
            "shows": [{"name": n, "words": w} for n, w in SHOWN.items()],
            "own": self._reader is not None,
            "modes": [{"name": n, **MODES[n]} for n in allowed],
            "step": STEP,
            "live": self._model is not None and bool(self._prompts),
            "opened": "",
            "complete": False,
        }

    # --- what is chosen ------------------------------------------------------------------------

    def choose(
        self, feature: int, *, mode: str | None = None, strength: float | int | None = None
    ) -> FeatureBrowser:
        """Open a feature, and set the slider of its edit. Returns the widget.

        Raises:
            WorkbenchError: the dashboard has no such feature, or the dictionary no such mode.
        """
        self._described.row(feature)
        changes: dict[str, Any] = {"feature": int(feature)}
        if mode is not None or strength is not None:
            mode = self.spec["mode"] if mode is None else mode
            start = MODES[mode]["start"] if mode in MODES else None
            now = start if strength is None else strength
            changes["mode"], changes["strength"] = checked(self._dictionary, mode, now)
        self.ask(**changes)
        return self

    def search(
        self, query: str = "", *, sort: str | None = None, reverse: bool = False,
        show: str | None = None,
    ) -> FeatureBrowser:  # fmt: skip
        """List the features whose texts hold every word of `query`; see `found`. Returns the widget.

        Args:
            query: words; "#17" is feature 17.
            sort: "label" (F1), "largest", "density", "number", or the name of a ranking.
            show: "alive", "sparse", "dense", "dead" or "all".

        Raises:
            UnknownName: no such order or filter.
        """
        asked = {"query": str(query), "sort": sort or self.spec["sort"], "reverse": bool(reverse)}
        asked["show"] = show or self.spec["show"]
        find(self._described, self._rankings, **asked)
        self.ask(**asked, limit=LISTED)
        return self

    @property
    def found(self) -> list[int]:
        """The features of the list, in its order."""
        return self._found(self.spec)

    def read(self, text: str) -> FeatureBrowser:
        """Read a text of your own with the opened feature. Returns the widget.

        Raises:
            WorkbenchError: the browser has no dictionary or no model.
        """
        if self._reader is None:
            raise _lacks("read a text", "dictionary= and model=")
        self.ask(text=text)
        return self

    # --- frames --------------------------------------------------------------------------------

    def _needs_frame(self, old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
        return any(old.get(name) != new.get(name) for name in ASKS)

    def _frame(self, spec: dict[str, Any], job: worker.Job) -> Mapping[str, Any]:
        feature, text = spec["feature"], str(spec["text"])[:LONGEST_TEXT]
        frame = {
            "list": self._list(spec),
            "one": self._described.about(feature, self._rankings, self._examples),
        }
        if text and self._reader is not None:
            frame["own"] = self._reader.frame(text, feature, self._described)
        return frame

    def _found(self, spec: Mapping[str, Any]) -> list[int]:
        asked = {k: spec[k] for k in ("sort", "reverse", "show")}
        return find(self._described, self._rankings, query=str(spec["query"]), **asked)

    def _list(self, spec: Mapping[str, Any]) -> dict[str, Any]:
        found, limit = self._found(spec), max(1, int(spec["limit"]))
        ranking = self._rankings.get(spec["sort"])
        rows = [self._listed(f, ranking) for f in found[:limit]]
        return {"rows": rows, "matched": len(found)}

    def _listed(self, feature: int, ranking: Any) -> dict[str, Any]:
        i = self._described.place[feature]
        row = {
            "feature": feature,
            "label": cut(self._described.label(feature), LONGEST_LABEL),
            "density": cut_number(self._described.density[i]),
            "largest": cut_number(self._described.largest[i]),
        }
        return row if ranking is None else {**row, "score": ranking.of(feature)}

    def _fetch(self, what: str, arguments: Mapping[str, Any], job: worker.Job) -> Mapping[str, Any]:
        if what == "code":
            return {"code": self.to_code()}
        if what == "open":
            return {"opened": self._opened()}
        return super()._fetch(what, arguments, job)

    # --- as Python -----------------------------------------------------------------------------

    def to_record(self) -> Intervention:
        """The edit that the slider says, of the opened feature.

        Raises:
            WorkbenchError: no dictionary, a mode it does not allow, or a feature that is never active.
        """
        feature, spec = self.spec["feature"], self.spec
        row = self._described.row(feature)
        mode, strength = checked(self._dictionary, spec["mode"], spec["strength"])
        largest = float(self._described.largest[row])
        return edit_of(self._dictionary, feature, mode, strength, largest)

    def to_code(self, folder: str = "edits") -> str:
        """A cell that steers with the opened feature; its edit goes to `folder`."""
        edit, spec = self.to_record(), self.spec
        one = MODES[spec["mode"]]
        words = f"feature {spec['feature']}: {one['words']} {spec['strength']:g} {one['unit']}"
        prompts = self._steered()
        return cell(self._model, prompts[0] if prompts else None, edit, words, folder)

    def _steered(self) -> list[Prompt]:
        if self._prompts:
            return self._prompts
        return [Prompt(text=self.spec["text"])] if self.spec["text"] else []

    def steer(self, **options: Any) -> LiveEdit:
        """The edit in a LiveEdit, on the prompts or on the own text.

        Args:
            options: of LiveEdit.

        Raises:
            WorkbenchError: nothing to steer, see `to_record`; no model, or neither prompts nor text.
        """
        prompts = self._steered()
        if self._model is None or not prompts:
            raise _lacks("steer", "model=, and prompts= or an own text")
        edit = self.to_record()
        named = edit.named(f"{edit.label} ({self.spec['mode']})")
        return LiveEdit(self._model, prompts, [named], **options)

    def _opened(self) -> str:
        """A LiveEdit of the edit, below; the one before it goes."""
        before = self._shown_live
        self._shown_live = made = self.steer()
        reference = f"IPY_MODEL_{made.model_id}"
        self.meta = {**self.meta, "opened": reference}
        if before is not None:
            before.close()
        return reference

    def precompute(
        self, grid: Iterable[int] | None = None, *, features: Iterable[int] | None = None
    ) -> FeatureBrowser:
        """Keep features for a page without a kernel: there they can be searched, opened, and read on
        the own text. Returns the widget.

        Args:
            grid, features: which ones; the first 24 of the list, and the opened one, by default.

        Raises:
            WorkbenchError: no features, or one that the dashboard does not describe.
        """
        given = grid if features is None else features
        wanted = _features(given, self._found(self.spec)[:KEPT])
        for feature in wanted:
            self._described.row(feature)
        kept = list(dict.fromkeys(map(int, [*wanted, self.spec["feature"]])))
        work = worker.submit(lambda job: self._kept(kept, job), label="FeatureBrowser.precompute")
        self.sweep = work.result()
        return self

    def _kept(self, features: list[int], job: worker.Job) -> bytes:
        """As many examples of each as the page has room for."""
        examples, spec = self._examples, self.spec
        while True:
            about = [self._described.about(f, self._rankings, examples) for f in features]
            found = {"grid": features, "features": about, **self._own_kept(features, spec["text"])}
            packed = pack(found)
            if len(packed) <= KEPT_BYTES or examples == 1:
                return packed
            examples = max(1, examples // 2)
            job.progress(0, len(features), f"{examples} examples each")

    def _own_kept(self, features: list[int], text: str) -> dict[str, Any]:
        if not text or self._reader is None:
            return {}
        lines = {str(f): self._reader.frame(text, f, self._described) for f in features}
        first = next(iter(lines.values()))
        if "problem" in first:
            return {}
        values = {f: line["values"] for f, line in lines.items()}
        return {"own": {**first, "values": values}}

    # --- pictures ------------------------------------------------------------------------------

    def _words(self) -> str:
        feature = self.spec["feature"]
        said = f"{len(self._described.features)} features"
        if feature not in self._described.place:
            return said
        i = self._described.place[feature]
        density = number(100 * float(self._described.density[i]))
        label = cut(self._described.label(feature), 60)
        return f"{said}; feature {feature}, {label}, active on {density} % of tokens"

    def _still(self) -> str:
        frame = self.frame
        return still(self.meta["title"], frame.get("one"), frame.get("list"))


def _fitting(
    dashboard: Dashboard, dictionary: Dictionary | None, model: Model | None, force: bool
) -> None:
    """Refuse a dictionary that is not the dashboard's, or not the model's."""
    if dictionary is None:
        return
    expect("FeatureBrowser(dictionary=)", dictionary, Dictionary)
    largest = max(map(int, dashboard.features), default=0)
    other = not same_name(dashboard.dictionary_name, dictionary.name) and not force
    if dashboard.site != dictionary.site or largest >= dictionary.n_features or other:
        raise WorkbenchError(
            "FeatureBrowser(dictionary=)",
            "is not the one that the dashboard is of",
            expected=f"{dashboard.dictionary_name or 'a dictionary'} at {dashboard.site}, "
            f"more than {largest} features",
            got=f"{dictionary.name or 'a dictionary'} at {dictionary.site}, {dictionary.n_features}",
            do="make the dashboard of this dictionary; force=True accepts another name alone",
        )
    if model is not None:
        check_fits(dictionary, model, "FeatureBrowser", force=force)


def _features(given: Any, default: list[int]) -> list[int]:
    try:
        found = default if given is None else list(given)
    except TypeError:
        found = []
    if found:
        return found
    raise WorkbenchError(
        "FeatureBrowser.precompute",
        "has no features to keep",
        expected="a list of feature numbers",
        got=repr(given)[:80],
        do="pass some, or search for what there is",
    )


def _lacks(what: str, expected: str) -> WorkbenchError:
    return WorkbenchError(
        "FeatureBrowser", f"has nothing to {what} with", expected=expected, got="None",
        do="give them when you make the browser",
    )  # fmt: skip
