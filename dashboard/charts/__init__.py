"""Pure functions that turn data frames into Plotly figures, drawn as SVG and never with WebGL."""
