// Bundle every widget's main.js with what it shares into one module, widget.js, beside it.
// `node widgets/js/build.js [name ...]`; the results are committed, so that pip never needs npm.

import { build } from "esbuild";
import { existsSync, readdirSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const widgets = dirname(dirname(fileURLToPath(import.meta.url)));
const asked = process.argv.slice(2);
const names = asked.length ? asked : readdirSync(widgets).filter((name) => existsSync(join(widgets, name, "main.js")));

for (const name of names) {
  await build({
    entryPoints: [join(widgets, name, "main.js")],
    outfile: join(widgets, name, "widget.js"),
    bundle: true,
    format: "esm",
    minify: true,
    target: "es2022",
    charset: "utf8",
    legalComments: "none",
  });
}
