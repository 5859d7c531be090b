"""The application against its own description: every request that it allows, and many that it does not."""

from __future__ import annotations

import io
from contextlib import suppress

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from PIL import Image
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from tripletmas.serve.making import make_app
from tripletmas.serve.questions import IMAGE_TYPES, RAW


def encoded(colour: int, kind: str) -> bytes:
    content = io.BytesIO()
    Image.new("L", (3, 5), colour).save(content, kind)
    return content.getvalue()


pictures = st.builds(encoded, st.integers(0, 255), st.sampled_from(["png", "jpeg", "webp", "bmp", "gif", "tiff"]))
for media_type in (*IMAGE_TYPES, RAW):
    schemathesis.openapi.media_type(media_type, pictures)


@pytest.mark.slow
@pytest.mark.parametrize("mode", list(GenerationMode))
@pytest.mark.parametrize("of_texts", [False, True])
def test_it_does_as_it_says(of_texts, mode, made, texts):
    """Statuses, content types and bodies are those of the description; what it excludes is refused, not answered."""
    path = texts / "faq.index" if of_texts else made / "shop.index"
    app = make_app(str(path), device="cpu", hosts=None)
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    tried = set()
    for found in schema.get_all_operations():
        operation = found.ok()

        @settings(max_examples=25, suppress_health_check=list(HealthCheck), database=None)
        @given(case=operation.as_strategy(generation_mode=mode))
        def asked(case):
            tried.add(case.operation.label)
            # in a form all is text, and the description cannot ask for the names of files
            is_form = case.media_type == "multipart/form-data"
            case.call_and_validate(
                excluded_checks=[negative_data_rejection, positive_data_acceptance] if is_form else []
            )

        with suppress(Unsatisfiable):  # nothing is wrong for what has no parameters
            asked()
    assert "POST /query" in tried
