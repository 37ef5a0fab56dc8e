"""One small instance of every widget, as a cell of the prepared notebook makes it."""

from __future__ import annotations

WIDGETS = {
    "LiveEdit": "LiveEdit(model, prompts, [push], max_new_tokens=4)",
    "RunPanel": "RunPanel(model)",
    "LensGrid": "widgets.LensGrid(model, prompts[0], [push])",
    "AttentionView": "widgets.AttentionView(model, prompts[0], [push])",
    "PromptBar": "widgets.PromptBar(model, prompts[0], prompts[1])",
    "TokenStrip": "widgets.TokenStrip(['a', ' b', 'c'], {'p': [0.1, 0.5, 0.9], 'q': [-1.0, None, 1.0]})",
    "SweepExplorer": "widgets.SweepExplorer(model, prompts, lambda layer: Intervention('custom', 'affine', "
    "{f'L{layer}.resid_post': {'shift': shift}}, unit='x', params={}, model=model.fingerprint_shape, "
    "name='push'), layers=[1, 3], strengths=[1, 2], max_new_tokens=4)",
    "RolloutBoard": "widgets.RolloutBoard(model, prompts, [wb.Arm('steered', [push])], seeds=(0, 1), "
    "max_new_tokens=4)",
    "SteeringLab": "widgets.SteeringLab(model, wb.tasks.make('locked', n=16, seed=1), "
    "['mean_difference', 'ace'], layers=[1, 3], strengths=[-2, 2], prompts=prompts, max_new_tokens=4)"
    ".train().choose('ace', 3, 2)",
    "PatchGrid": "widgets.PatchGrid(model, wb.prompts.counterfactuals("
    "clean=['add 12+34\\n', 'add 15+31\\n'], corrupted=['add 17+34\\n', 'add 18+31\\n'], "
    "answers=['2', '5'], foils=['7', '8']), 'activation_patching').choose(layer=1, pos=6)",
    "HeadBoard": "widgets.HeadBoard(model, prompts, wb.locate.find('previous_token_heads', model, prompts), "
    "neuron='L2.mlp_post[neuron=3]').choose(1, 2)",
    "ProbeStrip": "widgets.ProbeStrip(model, prompts, wb.probes.fit('mass_mean', model.record(wb.tasks.make("
    "'locked', n=64, seed=1), 'L2.resid_post', progress=False))['L2.resid_post'], [push], max_new_tokens=4)",
    "FeatureBrowser": "widgets.FeatureBrowser(wb.sae.dashboard(wb.sae.load('reasoner/L3.resid_post-512', "
    "model=model), model, wb.tasks.make('locked', n=64, seed=1), progress=False), "
    "wb.sae.load('reasoner/L3.resid_post-512', model=model), model, prompts).read('locked add 1 2?')",
    "TransferMap": "widgets.TransferMap(wb.sae.forecast("
    "wb.sae.load('reasoner/L3.resid_post-512', model=model), model, "
    "{name: wb.sae.Domain(wb.tasks.make(name, 4, seed=1), wb.tasks.make(name, 1, seed=9)) "
    "for name in ('add', 'sub', 'sort', 'max')}, draws=50, progress=False)"
    ".against({'add': {'sub': 0.1, 'sort': -0.2, 'max': 0.0}}), "
    "wb.sae.dashboard(wb.sae.load('reasoner/L3.resid_post-512', model=model), model, prompts, "
    "progress=False), wb.sae.load('reasoner/L3.resid_post-512', model=model), model).choose('add', 'sort')",
}
