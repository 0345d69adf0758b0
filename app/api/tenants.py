"""The route of a tenant as a whole: its end."""

from __future__ import annotations

from litestar import Controller, delete
from litestar.di import NamedDependency
from litestar.params import FromPath

from app.api import shapes
from app.api.answers import JSON, Answer, encode
from app.api.call import Caller
from app.api.routes import DECIDE
from app.erasure import Erasure
from models.errors import NotFound


class TenantRoutes(Controller):
    """What concerns everything that a tenant has."""

    path = "/v1/tenants"
    tags = ["operations"]

    @delete("/{tenant:str}", **DECIDE, status_code=200, summary="Erase the caller's tenant: every trace, its keys too")
    async def erase(
        self, tenant: FromPath[str], caller: Caller, erasure: NamedDependency[Erasure]
    ) -> Answer[shapes.Erased]:
        caller.require_every_owner()
        if tenant != caller.tenant:
            raise NotFound(f"There is no tenant '{tenant[:64]}'.")
        done = await erasure.tenant(tenant, key=caller.key)
        return Answer(encode({"tenant": tenant, "removed": done.removed}), media_type=JSON)
