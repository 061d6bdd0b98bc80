from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st

from difftilt.report.markup import join, raw, tag


class _Read(HTMLParser):
    def __init__(self, markup: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: dict[str, str | None] = {}
        self.text = ""
        self.feed(markup)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes |= dict(attrs)

    def handle_data(self, data):
        self.text += data


# HTML itself forbids surrogates and turns \0 and \r into other characters.
TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]))


@given(TEXT, TEXT)
def test_any_text_comes_back_as_text(content, attribute):
    read = _Read(tag("p", content, title=attribute))
    assert (read.tags, read.text) == (["p"], content)
    assert read.attributes == {"title": attribute}


def test_markup_is_kept_and_text_is_not():
    inner = tag("b", "a < b")
    assert tag("p", inner, "<b>") == "<p><b>a &lt; b</b>&lt;b&gt;</p>"


def test_attribute_names_and_void_elements():
    assert tag("img", class_="x", aria_label="y", alt=None) == '<img class="x" aria-label="y">'


def test_join_leaves_out_what_is_empty():
    assert join(raw("<a></a>"), raw(""), raw("<b></b>")) == "<a></a>\n<b></b>"
