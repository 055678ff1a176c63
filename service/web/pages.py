"""The page: a list of jobs and one job, as HTML without data; its scripts fetch those.

So the HTML and its static files need no token, are the same for everyone, and the browser asks for
one only when the first fetch is refused.
"""

from pathlib import Path
from typing import Annotated

from fastapi import FastAPI
from fastapi import Path as PathParameter
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles
from jinja2 import Environment, FileSystemLoader, StrictUndefined

_PAGE = Path(__file__).parent / "page"
_STATIC = _PAGE / "static"


def add_pages(app: FastAPI) -> None:
    """Add `/`, `/jobs/{id}`, of an id or enough of its beginning, and `/static/...` to `app`."""
    environment = Environment(
        loader=FileSystemLoader(_PAGE / "templates"), autoescape=True, undefined=StrictUndefined
    )
    # relative, so that a proxy may publish the page below any path
    jobs = environment.get_template("jobs.html").render(root="./")
    job = environment.get_template("job.html").render(root="../")

    @app.get("/", include_in_schema=False)
    async def jobs_page() -> HTMLResponse:
        return HTMLResponse(jobs)

    @app.get("/jobs/{job_id}", include_in_schema=False)
    async def job_page(
        job_id: Annotated[str, PathParameter(pattern="^[0-9a-f]{4,32}$")],
    ) -> HTMLResponse:
        return HTMLResponse(job)

    app.mount("/static", StaticFiles(directory=_STATIC), name="static")
