"""Ads in files: what -long, -json and -xml print, and history files with their banner lines; ours or another's.

Source: HTCondor manual, ClassAd file formats, condor_history.
"""

from __future__ import annotations

import json
import re
from typing import Any
from xml.etree import ElementTree

from pilotq.condor.expressions import old_text, unparse
from pilotq.condor.poolads import TextAd
from pilotq.errors import UserError

#: What ends an ad in a history file.
BANNER = "***"
_ATTRIBUTE = re.compile(r"\s*([A-Za-z_][\w.]*)\s*=(?!=)\s*(.*?)\s*", re.ASCII | re.DOTALL)
_EXPRESSION = re.compile(r"\\?/Expr\((.*)\)\\?/", re.DOTALL)


def read_ads(text: str, form: str = "") -> list[TextAd]:
    """All ads of a file, in order.

    Raises: UserError when it is not in the form (of `options.FORMS`) it should be in.
    """
    start = text.lstrip()[:1]
    if form == "json" or (form != "long" and start in ("[", "{") and start):
        return _read_json(text)
    if form == "xml" or (form != "long" and start == "<"):
        return _read_xml(text)
    return _read_long(text)


def _read_long(text: str) -> list[TextAd]:
    """A string may go on over several lines; what follows the last banner of a history file is not complete."""
    ads: list[TextAd] = []
    texts: dict[str, str] = {}
    has_banners = False
    name = ""
    lines = text.split("\n")
    for number, line in enumerate(lines, 1):
        if name and _is_open(texts[name]):
            texts[name] += "\n" + line
            continue
        is_banner = line.startswith(BANNER)
        if is_banner or not line.strip():
            has_banners = has_banners or is_banner
            if has_banners and not is_banner:
                continue
            if texts:
                ads.append(TextAd(texts))
            texts, name = {}, ""
            continue
        match = _ATTRIBUTE.fullmatch(line)
        if match is None:
            if line.lstrip().startswith("#") or (has_banners and number == len(lines)):
                continue
            raise UserError(f"line {number} is not an attribute of an ad: {line.strip()[:100]}")
        name = match[1]
        texts[name] = match[2]
    if texts and not has_banners:
        ads.append(TextAd(texts))
    return ads


def _is_open(text: str) -> bool:
    """Does a string begin in it that does not end? A quote that ends the line ends a string, whatever is before it."""
    if text[:1] != '"':
        return False
    is_quoted = len(text) > 1 and text.endswith('"')
    inner = text[:-1] if is_quoted else text
    return (inner.replace('\\"', "").count('"') % 2 == 1) is not is_quoted


def _read_json(text: str) -> list[TextAd]:
    """One list of objects, or objects one after the other."""
    decoder, ads, at = json.JSONDecoder(), list[TextAd](), 0
    text = text.strip()
    try:
        while at < len(text):
            value, at = decoder.raw_decode(text, at)
            for found in value if isinstance(value, list) else [value]:
                ads.append(TextAd({name: _of_json(one) for name, one in found.items()}))
            while at < len(text) and text[at] in ", \t\r\n":
                at += 1
    except (ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"not ads in JSON: {error}") from None
    return ads


def _of_json(value: Any) -> str:
    if isinstance(value, str):
        match = _EXPRESSION.fullmatch(value)
        return old_text(match[1]) if match else unparse(value)
    if value is None:
        return "undefined"
    if isinstance(value, list):
        return f"{{ {','.join(map(_of_json, value))} }}" if value else "{  }"
    if isinstance(value, dict):
        inner = "; ".join([f"{name} = {_of_json(one)}" for name, one in value.items()])
        return f"[ {inner} ]"
    return unparse(value)


def _read_xml(text: str) -> list[TextAd]:
    if "<!ENTITY" in text:
        raise UserError("ads in XML do not define entities")
    try:
        root = ElementTree.fromstring(text)
        return [TextAd({a.attrib["n"]: _of_xml(a[0]) for a in ad}) for ad in root.iter("c")]
    except (ElementTree.ParseError, KeyError, IndexError, ValueError) as error:
        raise UserError(f"not ads in XML: {error}") from None


def _of_xml(element: ElementTree.Element) -> str:
    text = element.text or ""
    match element.tag:
        case "s":
            return unparse(text)
        case "b":
            return "true" if element.get("v") == "t" else "false"
        case "r":
            return unparse(float(text))
        case "un":
            return "undefined"
        case "er":
            return "error"
        case "l":
            return f"{{ {','.join(map(_of_xml, element))} }}" if len(element) else "{  }"
    return text
