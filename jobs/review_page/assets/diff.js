// What changed between two texts, word by word: the longest common subsequence stays unmarked.

const MAX_DIFF_WORDS = 800;

function compared(row, key) {
  row.compared ??= new Map();
  if (!row.compared.has(key)) {
    row.compared.set(key, changes(textsOf(row).get(key) ?? "", textsOf(row.other).get(key) ?? ""));
  }
  return row.compared.get(key);
}

function changed(piece) { return typeof piece === "string" ? piece : make(piece[0], "", piece[1]); }

function changes(left, right) {
  const a = left.match(/\s*\S+/g) ?? [];
  const b = right.match(/\s*\S+/g) ?? [];
  if (left === right || a.length > MAX_DIFF_WORDS || b.length > MAX_DIFF_WORDS) return [[left], [right]];
  const wide = b.length + 1;
  const lengths = new Uint16Array((a.length + 1) * wide);
  for (let i = a.length - 1; i >= 0; i--) {
    for (let j = b.length - 1; j >= 0; j--) {
      lengths[i * wide + j] = a[i].trim() === b[j].trim()
        ? lengths[(i + 1) * wide + j + 1] + 1
        : Math.max(lengths[(i + 1) * wide + j], lengths[i * wide + j + 1]);
    }
  }
  const before = [], after = [];
  let i = 0, j = 0;
  while (i < a.length || j < b.length) {
    if (i < a.length && j < b.length && a[i].trim() === b[j].trim()) {
      before.push(a[i++]);
      after.push(b[j++]);
    } else if (j >= b.length || (i < a.length && lengths[(i + 1) * wide + j] >= lengths[i * wide + j + 1])) {
      before.push(["del", a[i++]]);
    } else {
      after.push(["ins", b[j++]]);
    }
  }
  return [before, after];
}
