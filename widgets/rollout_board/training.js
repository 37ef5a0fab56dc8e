// Arms that are to be trained: a button, the progress, the reward curve of the training and its controls.

import { h } from "../js/dom.js";
import { curve, fileOf } from "../js/intervals.js";

/** Whether somebody asked for the training and some of it is neither made nor failed. */
export function waits(training, spec) {
  return spec.train.includes(training.name) && training.runs.some((run) => !run.made && !run.error);
}

/** Whether an arm has seeds to answer, or a training was asked for and waits. */
export function unfinished({ meta, spec }, frame) {
  return frame.arms.some((arm) => !arm.error && arm.done < meta.seeds.length) || frame.trainings.some((training) => waits(training, spec));
}

/** @param {import("../js/base.js").View} view */
export function trainings(view) {
  const element = h("div", { class: "wb-trainings" });
  let drawn = "";
  return {
    element,
    /** The reward curves as files. @returns {string[]} */
    svgs: () => [...element.querySelectorAll(".wb-curve")].map(fileOf),
    draw(frame, busy) {
      const key = JSON.stringify([frame.trainings, busy, view.live, view.spec.train]);
      if (key === drawn) return; // keep the button that has the focus
      drawn = key;
      element.replaceChildren(...frame.trainings.map((training) => panel(view, training, busy)));
    },
  };
}

function panel(view, training, busy) {
  const asked = view.spec.train.includes(training.name);
  const steps = `${training.steps} step${training.steps === 1 ? "" : "s"}`;
  const button = h("button", { type: "button", disabled: !view.live || asked }, `Train ${steps}`);
  button.addEventListener("click", () => view.ask({ train: [...view.spec.train, training.name], go: view.spec.go + 1 }));
  const words = inWords(training, view, busy);
  return h("fieldset", { class: "wb-training" }, h("legend", {}, `train: ${training.name}`),
    h("div", { class: "wb-row" }, button, h("span", { class: "wb-quiet" }, words)),
    ...training.edits.map((text) => h("div", { class: "wb-quiet wb-small" }, `in the rollouts: ${text}`)),
    ...training.runs.filter((run) => run.error).map((run) => h("div", { class: "wb-wrong" }, `${run.name}: ${run.error}`)),
    rewards(training));
}

function inWords(training, view, busy) {
  const { runs } = training;
  if (runs.every((run) => run.made)) return "trained; the result stands in the table, judged without the edits";
  if (waits(training, view.spec)) return busy ? "under way" : view.live ? "asked for; press Continue" : "not finished; needs a running kernel";
  if (runs.every((run) => run.error)) return "failed";
  if (runs.some((run) => run.error)) return "failed in part";
  return view.live ? "with a seed twin and a control on shuffled rewards" : "not trained; needs a running kernel";
}

function rewards(training) {
  const longest = Math.max(...training.runs.map((run) => run.mean.length));
  if (!longest) return null;
  const filled = (values) => Array.from({ length: longest }, (_, i) => values[i] ?? null);
  const series = training.runs.map((run, kind) => ({ name: run.name, kind, mean: filled(run.mean), low: filled(run.low), high: filled(run.high) }))
    .filter((one) => one.mean.some((value) => value !== null));
  const xs = Array.from({ length: longest }, (_, i) => i + 1);
  return h("div", {}, curve({ label: `reward of ${training.name}`, xs, xName: "step", yName: "mean reward", within: [0, 1], series }),
    h("div", { class: "wb-quiet wb-small" }, "Rewards of the rollouts in training, with 95 % intervals over the prompts of a step."));
}
