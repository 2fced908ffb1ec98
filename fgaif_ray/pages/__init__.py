"""What all pages are made with: one Jinja environment, and a style sheet that they share.

A page is one HTML document that loads nothing else. Whatever comes from outside is escaped, and a name that the
template knows and the code does not is an error.
"""

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined


def page_environment(*packages: str) -> Environment:
    """The environment of a page.

    Args:
        packages: whose folders ``templates/`` are searched, in this order, before the shared one.
    """
    return Environment(
        loader=ChoiceLoader([PackageLoader(package) for package in (*packages, "fgaif_ray.pages")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def page_source(environment: Environment, name: str) -> str:
    """The text of a script or style sheet as it stands in its file, to be put into a page.

    Raises:
        jinja2.TemplateNotFound: no package of the environment has it.
    """
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]


def page_style(environment: Environment, *names: str) -> str:
    """The shared style sheet and, after it, those of a page."""
    return "".join(page_source(environment, name) for name in ("base.css", *names))
