import { mount } from "../js/base.js";
import { h, short } from "../js/dom.js";
import { csv } from "../js/export.js";
import { cells } from "../js/cells.js";
import { bar, span, stacked, words } from "../js/intervals.js";
import { KIND, MARK, textAt, transcript } from "../js/transcripts.js";
import { busy, redrawWhenItEnds } from "../js/work.js";
import { boardSvg, linesAsRows } from "./pictures.js";
import { lineOf, roundOf, textNumber } from "./reading.js";
import { trainings, unfinished } from "./training.js";

const SAID = ["wrong", "right", "not judged"];
const STATE = { baseline: "baseline", control: "random control", trained: "trained", arm: "" };
const COLOUR = { baseline: null, control: 1, trained: 2, arm: 0 };

const board = {
  name: "rollout_board",
  build(view) {
    view.more = h("button", { type: "button" }, "Continue");
    view.arms = cells(view, { label: "arms and their measures", onSelect: (row) => choose(view, { arm: view.frame.arms[row].name }) });
    view.arms.element.classList.add("wb-arms");
    view.problems = h("div", { class: "wb-small" });
    view.rule = h("div", { class: "wb-quiet wb-small" });
    view.trainings = trainings(view);
    view.title = h("div", { class: "wb-title", role: "status" });
    view.prompts = cells(view, {
      label: "prompts of the arm, a column for each seed",
      onSelect: (row, col) => choose(view, { prompt: row, seed: view.meta.seeds[col] }),
    });
    view.capped = h("div", { class: "wb-quiet wb-small" });
    view.transcript = transcript(view);
    view.body.append(view.arms.element, h("div", { class: "wb-row" }, view.more, view.problems), view.rule, view.trainings.element, view.title,
      h("div", { class: "wb-pair" }, view.prompts.element, h("div", { class: "wb-right-side" }, view.capped, view.transcript.element)));
    view.listen(view.more, "click", () => view.ask({ go: view.spec.go + 1 }));
    view.fetched = {};
    redrawWhenItEnds(view);
  },
  draw(view, frame) {
    view.more.hidden = !view.live || busy(view) || !unfinished(view, frame);
    drawArms(view, frame);
    view.trainings.draw(frame, busy(view));
    drawPrompts(view, frame);
  },
  empty(view) { view.more.hidden = !view.live || busy(view); },
  pictures: (view) => ({ svg: () => picture(view), csv: () => csv(linesAsRows(view.frame, view.meta)) }),
  debug: (view) => ({
    chosen: view.frame && chosenOf(view, view.frame), transcript: view.transcript.state, title: view.title.textContent,
    table: [...view.arms.table.rows].map((row) => [...row.cells].map((cell) => cell.textContent)), capped: view.capped.textContent,
  }),
};

function picture(view) {
  const parts = [boardSvg(view.frame, view.meta, COLOUR), ...view.trainings.svgs(), view.transcript.svg()];
  return stacked(parts.filter(Boolean));
}

function chosenOf(view, frame) {
  const seen = view.model.get("view") ?? {}, { meta } = view;
  const first = frame.arms.find((arm) => arm.name !== meta.base) ?? frame.arms[0];
  const arm = frame.arms.find((one) => one.name === seen.arm) ?? first;
  return {
    arm: arm?.name, prompt: Math.min(seen.prompt ?? 0, meta.n_prompts - 1),
    seed: meta.seeds.includes(seen.seed) ? seen.seed : meta.seeds[0],
  };
}

function choose(view, changes) {
  view.look({ ...chosenOf(view, view.frame), ...changes });
  view.redraw();
}

function drawArms(view, frame) {
  const { meta } = view, chosen = chosenOf(view, frame);
  const shown = meta.metrics.filter((about) => frame.measures.includes(about.name) || !about.name.startsWith("pass@"));
  const axes = shown.map((about) => axisOf(frame, meta, about));
  const rows = frame.arms.map((arm) => ({
    title: [armTitle(arm, meta)], kind: `wb-arm-${arm.kind}`,
    cells: shown.map((about, i) => armCell(lineOf(frame, arm.name, about.name), arm, about, axes[i])),
  }));
  const heads = shown.map((about) => `${about.name} (${about.unit})${{ higher: " ↑", lower: " ↓" }[about.better] ?? ""}`);
  view.arms.show(["arm", ...heads], rows, { row: frame.arms.findIndex((arm) => arm.name === chosen.arm) });
  const failed = frame.arms.filter((arm) => arm.error).map((arm) => `${arm.name}: ${arm.error}`);
  view.problems.replaceChildren(...[...failed, ...frame.notes].map((text) => h("div", { class: failed.includes(text) ? "wb-wrong" : "wb-quiet" }, text)));
  view.rule.textContent = `${meta.n_prompts} prompts, ${meta.seeds.length} seeds; 95 % intervals over prompts, differences to ${meta.base} paired by prompt. `
    + `* the interval leaves out 0, p < 0.05 after Holm's correction, and no smaller than the spread over seeds. ${meta.rule}`;
}

function armTitle(arm, meta) {
  const part = arm.error ? " failed" : arm.done < meta.seeds.length ? ` ${arm.done}/${meta.seeds.length} seeds` : "";
  return h("span", { title: [arm.name, ...arm.about].join("\n") }, arm.name, part ? h("span", { class: "wb-quiet" }, part) : null);
}

function axisOf(frame, meta, about) {
  const lines = frame.lines.filter((line) => line.metric === about.name);
  const [lo, hi] = about.unit.startsWith("fraction") ? [0, 1] : span(lines.flatMap((line) => [line.mean, line.low, line.high]));
  return { lo, hi, base: lines.find((line) => line.arm === meta.base)?.mean };
}

function armCell(line, arm, about, axis) {
  if (!line) return { parts: [arm.error ? "–" : "…"], say: `${arm.name}, ${about.name}: ${arm.error || "not there yet"}` };
  const gap = line.difference === null ? "" : `${words(line.difference, line.difference_low, line.difference_high, true)}${line.differs ? " *" : ""}`;
  const p = line.p_holm === null ? "" : `, p ${short(line.p_holm)} (Holm)`;
  const said = `${arm.name}, ${about.name}: ${words(line.mean, line.low, line.high)}${gap ? `; difference ${gap}${p}` : ""}`;
  const own = h("div", {}, words(line.mean, line.low, line.high));
  const picture = bar(line, { ...axis, kind: COLOUR[arm.kind] });
  return { parts: [own, picture, h("div", { class: line.differs ? "wb-gap-line wb-differs" : "wb-gap-line", title: said }, gap)], say: said };
}

function drawPrompts(view, frame) {
  const { meta } = view, chosen = chosenOf(view, frame);
  const arm = frame.arms.find((one) => one.name === chosen.arm);
  view.title.textContent = arm ? `${arm.name}${STATE[arm.kind] && arm.kind !== "baseline" ? ` (${STATE[arm.kind]})` : ""}: every prompt and seed` : "";
  const rounds = meta.seeds.map((seed) => roundOf(frame, chosen.arm, seed));
  view.prompts.show(["prompt", ...meta.seeds.map((seed) => `seed ${seed}`)], meta.prompts.map((prompt, i) => ({
    title: [h("span", { title: meta.answers[i] === null ? prompt : `${prompt}\nright answer: ${meta.answers[i]}` }, prompt)],
    cells: rounds.map((round, j) => {
      const right = round === null ? null : frame.right.values[round * meta.n_prompts + i];
      const say = right === null ? "not there yet" : SAID[right];
      return { parts: [right === null ? "…" : MARK[right]], kind: right === null ? "wb-quiet" : KIND[right], say: `prompt ${i}, seed ${meta.seeds[j]}: ${say}` };
    }),
  })), { row: chosen.prompt, col: meta.seeds.indexOf(chosen.seed) });
  drawTranscript(view, frame, chosen);
}

function drawTranscript(view, frame, chosen) {
  const { meta } = view, key = `${chosen.arm}/${chosen.seed}/${frame.arms.length}`;
  const read = (arm) => textAt(frame, textNumber(frame, arm, chosen.seed, chosen.prompt));
  let [base, own] = [read(meta.base), read(chosen.arm)];
  view.capped.textContent = "";
  if (!own && view.fetched[key]) {
    const found = view.fetched[key];
    [base, own] = [textAt(found, chosen.prompt), textAt(found, found.kept + chosen.prompt)];
  } else if (!own && roundOf(frame, chosen.arm, chosen.seed) !== null) {
    view.capped.textContent = `Transcripts of the first ${frame.kept} of ${meta.n_prompts} prompts are kept with the page${view.live ? "; reading this one…" : "."}`;
    if (view.live) fetchTexts(view, chosen, key);
  }
  const name = `seed ${chosen.seed}`;
  view.transcript.show(base && { name: `${meta.base}, ${name}`, text: base }, own && chosen.arm !== meta.base ? { name: `${chosen.arm}, ${name}`, text: own } : null);
}

function fetchTexts(view, { arm, seed }, key) {
  view.fetch("texts", { arm, seed }).then((frame) => {
    view.fetched = { [key]: frame };
    view.redraw();
  }, (error) => { view.capped.textContent = error.message; });
}

export default { render: (context) => { mount(context, board); } };
