from __future__ import annotations

import xml.etree.ElementTree as ElementTree

from tests.personas import SMOLLM2, random_persona
from vllm_palign.play.plots import head_map, radar


def parsed(text: str) -> ElementTree.Element:
    return ElementTree.fromstring(f"<p>{text}</p>")


def test_a_radar_draws_what_is_known_and_says_it_in_words() -> None:
    usual: dict[str, float | None] = dict.fromkeys("OCEAN", 3.0)
    drawn = parsed(radar({"O": 5.0, "C": None, "E": 1.0}, usual, 1, 5))
    own = [one for one in drawn.iter("circle") if one.get("class") == "own"]
    assert [(one.get("cx"), one.get("cy")) for one in own] == [("0.0", "-100.0"), ("0.0", "0.0")]
    assert not [one for one in drawn.iter("polygon") if one.get("class") == "own"]
    assert [one for one in drawn.iter("polygon") if one.get("class") == "usual"]
    assert drawn[0].get("aria-label") == "Big Five from 1 to 5: Openness 5, Extraversion 1"


def test_a_head_map_has_a_cell_for_every_steered_head_at_its_place() -> None:
    persona = random_persona(1, **SMOLLM2)
    cells = [one for one in parsed(head_map(persona)).iter("rect") if one.get("class") == "cell"]
    places = {(float(one.get("x", "")), float(one.get("y", ""))) for one in cells}
    assert places == {
        (layer * 10 + 0.5, head * 10 + 0.5)
        for layer, head in zip(persona.layers, persona.heads, strict=True)
    }
    assert max(float(one.get("fill-opacity", "")) for one in cells) == 1


def test_a_model_with_too_many_heads_is_said_so() -> None:
    assert "too many" in head_map(random_persona(1, num_layers=1000, num_heads=100, head_dim=2))
