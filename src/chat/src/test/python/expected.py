#!/usr/bin/env python3
"""Writes what transformers makes of the templates of ../resources/templates: Jinja2 set up as apply_chat_template does.

Usage: pip install jinja2==3.1.6; python3 expected.py
Other templates are tried with: python3 expected.py TEMPLATES EXPECTED (folders)
"""
import datetime
import json
import pathlib
import sys

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

HERE = pathlib.Path(__file__).resolve().parent.parent / "resources"


class Generation(jinja2.ext.Extension):
    """{% generation %}: what transformers marks for training, and renders as it is."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def environment():
    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = lambda f: datetime.datetime(2026, 3, 7, 9, 5, 2).strftime(f)
    return env


def main():
    templates = pathlib.Path(sys.argv[1]) if len(sys.argv) > 2 else HERE / "templates"
    expected = pathlib.Path(sys.argv[2]) if len(sys.argv) > 2 else HERE / "expected"
    conversations = json.loads((HERE / "conversations.json").read_text())
    env = environment()
    for path in sorted(templates.glob("*.jinja")):
        results = {}
        for name, messages in conversations.items():
            for prompt in (True, False):
                key = name + (" prompt" if prompt else "")
                try:
                    template = env.from_string(path.read_text())
                    results[key] = {
                        "text": template.render(
                            messages=messages, tools=None, documents=None, add_generation_prompt=prompt,
                            bos_token="<s>", eos_token="</s>",
                        )
                    }
                except Exception as e:
                    results[key] = {"error": f"{e}", "refusal": type(e) is jinja2.exceptions.TemplateError}
        (expected / (path.stem + ".json")).write_text(json.dumps(results, ensure_ascii=False, indent=1) + "\n")
    if len(sys.argv) < 3:
        results = {}
        for snippet in json.loads((HERE / "snippets.json").read_text()):
            results[snippet] = env.from_string(snippet).render(
                n=1, s="hello", m=["a", "b", "c"], d={"k": "v", "j": 2}, o=[{"r": "x"}, {"r": "y"}]
            )
        (expected / "snippets.json").write_text(json.dumps(results, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    main()
