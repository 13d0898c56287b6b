"""The report: one HTML page of one run or several, which needs nothing beside it.

Jinja fills ``page.html``, and escapes whatever comes from a run. The pictures are those of the runs, as PNG; curves are SVG in
the colors of the page; what moves is a hundred lines of plain JavaScript. A plotting library in the page would add 1 to 4 MB to
each report, and a file that is opened in ten years should not depend on it.
"""
