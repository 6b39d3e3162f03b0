#!/usr/bin/env python3
"""Rewrite the table of known failures in docs/reference/signatures.md from catalog/signatures.yaml."""

from pathlib import Path

from glm4_deploy.catalog.rows import table

DOC = Path(__file__).parents[1] / "docs/reference/signatures.md"
MARK = "<!-- from catalog/signatures.yaml: scripts/signature-table.py -->\n"

head, _, _ = DOC.read_text(encoding="utf-8").partition(MARK)
DOC.write_text(head + MARK + "\n" + table(), encoding="utf-8")
