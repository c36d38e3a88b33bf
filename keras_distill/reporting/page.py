"""The page of a report: one HTML file without scripts, for phones and desks, light and dark.

Written with `html.escape` alone: a template engine would be one dependency more for one page
whose every text is escaped in three places.
"""

import base64
import html
import json

from keras_distill.reporting import tables

# Paper and ink of the dark page are those of the dark pictures in `style`.
STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #57606a; --page: #ffffff;
  --line: #d0d7de; --card: #f6f8fa; --accent: #0059b3; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --soft: #9aa4af;
  --page: #0d1117; --line: #30363d; --card: #161b22; --accent: #6cb6ff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 70rem; background: var(--page);
  color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0.5rem 0; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 0.75rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; color: var(--ink); margin: 0; }
.soft, figcaption, caption { color: var(--soft); font-size: 0.9rem; }
.result { background: var(--card); border-left: 4px solid var(--accent); padding: 0.75rem 1rem;
  font-size: 1.1rem; }
.table { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: 0.9rem; }
caption { text-align: left; padding-bottom: 0.25rem; }
th, td { padding: 0.35rem 0.75rem 0.35rem 0; text-align: right; white-space: nowrap;
  font-variant-numeric: tabular-nums; border-bottom: 1px solid var(--line); }
th { font-weight: 600; }
thead th { white-space: normal; min-width: 4.5rem; vertical-align: bottom; overflow-wrap: normal; }
th:first-child { text-align: left; }
.figures { display: grid; gap: 2rem 2.5rem; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); }
figure { margin: 0; max-width: 36rem; }
@media (min-width: 64rem) { figure:only-child { display: grid; gap: 2.5rem; max-width: none;
  grid-template-columns: 1fr 36rem; align-items: start; } }
figcaption { margin-bottom: 0.5rem; }
figcaption p { margin: 0.15rem 0 0; }
img { display: block; width: 100%; height: auto; }
pre { background: var(--card); padding: 0.75rem; overflow-x: auto; font-size: 0.8rem; }
"""


def render(results, pictures, missing, settings):
    """The page as a string.

    Args:
        results: As `report` describes.
        pictures: A list of `(Picture, words, PNG for light pages, PNG for dark ones)`.
        missing: A list of `(Picture, why it is not there)`.
        settings: A dict, shown as it is.
    """
    title = html.escape(str(results.get("title") or "Distillation report"))
    parts = [f"<h1>{title}</h1>", *_head(results)]
    before = {"Side by side": tables.models_table(results).html()}
    exports = tables.exports_table(results)
    if exports is not None:
        before["Size and speed"] = exports.html()
    sections = {section: [] for section in before}
    for picture, *drawn in pictures:
        sections.setdefault(picture.section, []).append(_figure(picture, *drawn))
    for section, figures in sections.items():
        parts.append(f"<h2>{html.escape(section)}</h2>{before.get(section, '')}")
        if figures:
            parts.append(f'<div class="figures">{"".join(figures)}</div>')
    if missing:
        lines = "".join(
            f"<li>{html.escape(picture.title)}: {html.escape(reason.rstrip('.'))}.</li>"
            for picture, reason in missing
        )
        parts.append(f'<h2>Not shown</h2><ul class="soft">{lines}</ul>')
    if settings or results.get("command"):
        parts.append("<h2>Settings</h2>")
        if results.get("command"):
            parts.append(f"<pre>{html.escape(str(results['command']))}</pre>")
        if settings:
            text = json.dumps(settings, indent=2, ensure_ascii=False)
            parts.append(f"<pre>{html.escape(text)}</pre>")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(filter(None, parts))
        + "\n</body></html>\n"
    )


def _head(results):
    dataset = results.get("dataset") or {}
    if dataset:
        shape = "x".join(str(side) for side in dataset.get("image_shape") or [])
        facts = [
            str(dataset.get("name", "")),
            f"{dataset['train']:,} training images" if dataset.get("train") else "",
            f"{dataset['test']:,} test images" if dataset.get("test") else "",
            shape,
            f"{len(results['class_names'])} classes" if results.get("class_names") else "",
        ]
        yield f'<p class="soft">{html.escape(", ".join(filter(None, facts)))}</p>'
    sentence = tables.gain_sentence(results)
    if sentence:
        yield f'<p class="result">{html.escape(sentence)}</p>'
    for remark in results.get("remarks") or []:
        yield f"<p>{html.escape(str(remark))}</p>"


def _figure(picture, words, light, dark):
    title, words = html.escape(picture.title), html.escape(words)
    return (
        f'<figure id="{html.escape(picture.name)}"><figcaption><h3>{title}</h3><p>{words}</p>'
        f'</figcaption><picture><source media="(prefers-color-scheme: dark)" srcset="{_uri(dark)}">'
        f'<img src="{_uri(light)}" alt="{title}: {words}"></picture></figure>'
    )


def _uri(png):
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"
