import { describe, expect, it } from "vitest";
import { columnsOf, kindsOf, rowsOf, spansOf, tableOf, wordsOf } from "../../prompt_bar/chips.js";

const side = (ids, more = {}) => ({
  ids, text: ids.map(String), shown: ids.map(() => ""), special: ids.map((id) => id === 1), turn: ids.map(() => -1),
  roles: [], exact: true, n_context: 256, ...more,
});
const pair = { sides: [side([1, 7, 8]), side([1, 7, 9, 8])], pairs: [[0, 0], [1, 1], [-1, 2], [2, 3]] };

describe("chips", () => {
  it("say id, position and what a token is", () => {
    const [row] = rowsOf({ sides: [side([1, 7], { shown: ["<bos>", "⟨F0⟩"] })] });
    expect(row[0]).toMatchObject({ title: "id 1, special", note: "0\n#1", shown: "<bos>", kind: 0 });
    expect(row[1].title).toBe("id 7, part of a character");
    expect(rowsOf({ sides: [side([1])] }, false)[0][0].note).toBe(undefined);
  });

  it("name turns and what the template adds", () => {
    const chat = { sides: [side([3, 4, 5], { roles: ["system", "user"], turn: [0, -1, 1] })] };
    expect(rowsOf(chat)[0].map((token) => token.title)).toEqual(
      ["id 3, system's turn", "id 4, written by the chat template", "id 5, user's turn"]);
    expect(kindsOf(chat).map((kind) => kind.name)).toEqual(["system", "user", "chat template"]);
    expect(new Set(rowsOf(chat)[0].map((token) => token.kind)).size).toBe(3);
  });

  it("stand against their partners; what differs is marked", () => {
    const rows = rowsOf(pair);
    expect(rows[0][2]).toBe(null);
    expect(rows[1].map((token) => token.changed)).toEqual([false, false, true, false]);
    expect(wordsOf(pair, rows, [[1, 2], null])).toBe("3 and 4 tokens · 1 differ · positions shift · span(1, 2)");
  });
});

describe("the table", () => {
  it("has a line for each token or aligned pair", () => {
    expect(tableOf(pair)[0].slice(4, 7)).toEqual(["role", "other position", "other id"]);
    expect(tableOf(pair).slice(1)[2]).toEqual(["", "", "", "", "", 2, 9, "9", "", ""]);
    const chat = { sides: [side([1, 4], { roles: ["user"], turn: [-1, 0], shown: ["<bos>", ""], text: ["", "x"] })] };
    expect(tableOf(chat).slice(1)).toEqual([[0, 1, "<bos>", "special", ""], [1, 4, "x", "", "user"]]);
  });
});

describe("spans", () => {
  const rows = rowsOf(pair);
  it("become positions of each prompt", () => {
    expect(spansOf(rows, { start: 1, stop: 4 })).toEqual([[1, 3], [1, 4]]);
    expect(spansOf(rows, { start: 2, stop: 3 })).toEqual([null, [2, 3]]);
    expect(spansOf(rows, null)).toEqual([null, null]);
  });
  it("come back as columns", () => {
    expect(columnsOf(rows[0], [1, 3])).toEqual({ start: 1, stop: 4 });
    expect(columnsOf(rows[1], [2, 3])).toEqual({ start: 2, stop: 3 });
    expect(columnsOf(rows[0], [90, 91])).toBe(null);
    expect(columnsOf(rows[0], null)).toBe(null);
  });
});
