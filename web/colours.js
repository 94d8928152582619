// Colours of our wires and slots. The classic canvas looks them up in two objects; Nodes 2.0 paints wires from the same and slots from
// CSS variables. A palette empties the colours of all types that it does not name, each time it is chosen: ours come back then.

import { app } from "../../scripts/app.js";
import { addStyle } from "./element.js";

export const TYPE_COLOURS = {
  CIDM_BANK: "#1fae9d",
  CIDM_REGIONS: "#e0508c",
  CIDM_DATASET: "#97a832",
  CIDM_SETTINGS: "#7f8fb0",
  CIDM_AGGREGATION: "#4f7be0",
  CIDM_REGION_NOISE: "#b058d8",
  CIDM_REFERENCES: "#d4763b",
  CIDM_RESULTS: "#b9a06a",
  CIDM_TRAJECTORY: "#58b15c",
  CIDM_PLACE: "#d85a4a",
  CIDM_CONTRAST: "#c9b23f",
};

app.registerExtension({
  name: "cidm.Colours",
  setup() {
    const shown = [app.canvas.default_connection_color_byType, app.canvas.constructor.link_type_colors];
    for (const [type, ours] of Object.entries(TYPE_COLOURS))
      for (const colours of shown) {
        let palettes = colours[type];
        Object.defineProperty(colours, type, {
          get: () => palettes || ours,
          set: (colour) => (palettes = colour),
          enumerable: true,
          configurable: true,
        });
      }
    const variables = Object.entries(TYPE_COLOURS).map(([type, colour]) => `--color-datatype-${type}: ${colour};`);
    addStyle(`:root { ${variables.join(" ")} }`); // a palette sets them on the element itself, which comes first
    app.canvas.setDirty(true, true);
  },
});
