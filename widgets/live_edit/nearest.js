/** Index of the precomputed value closest to `value`: between two of them the page snaps. */
export function nearest(grid, value) {
  let best = 0;
  grid.forEach((one, i) => { if (Math.abs(one - value) < Math.abs(grid[best] - value)) best = i; });
  return best;
}
