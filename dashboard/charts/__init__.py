"""Pure functions of data frames that return Plotly figures; drawn as SVG, never with WebGL."""
