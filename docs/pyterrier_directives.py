"""Plain stand-ins for the directives that exist in PyTerrier's own documentation build only."""
from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.util.docutils import SphinxDirective


class HowTo(SphinxDirective):
    """`.. how-to:: A question?` is a section with the question as its title."""

    has_content = True
    required_arguments = 1
    final_argument_whitespace = True

    def run(self):
        question = self.arguments[0]
        section = nodes.section(ids=[nodes.make_id(question)], names=[nodes.fully_normalize_name(question)])
        text, messages = self.state.inline_text(question, self.lineno)
        section += nodes.title(question, '', *text)
        self.state.nested_parse(self.content, self.content_offset, section)
        return [section, *messages]


class Related(SphinxDirective):
    """`.. related:: object` links back from the object's page in PyTerrier's build; nothing here."""

    required_arguments = 1
    option_spec = {'title': directives.unchanged}

    def run(self):
        return []


class CiteDblp(SphinxDirective):
    """`.. cite.dblp:: key` is a link to the paper's record."""

    required_arguments = 1

    def run(self):
        key = self.arguments[0]
        link = nodes.reference(key, f'dblp: {key}', refuri=f'https://dblp.org/rec/{key}.html')
        return [nodes.paragraph('', 'Citation: ', link)]


class Schematic(SphinxDirective):
    """`.. schematic::` runs its code and draws the pipeline in PyTerrier's build; here the code is shown."""

    has_content = True
    option_spec = {'show_code': directives.flag, 'input_columns': directives.unchanged}

    def run(self):
        code = '\n'.join(self.content)
        return [nodes.literal_block(code, code, language='python')]


def setup(app):
    app.add_directive('how-to', HowTo)
    app.add_directive('related', Related)
    app.add_directive('cite.dblp', CiteDblp)
    app.add_directive('schematic', Schematic)
    return {'parallel_read_safe': True}
