-- The second nginx, between the first one and the router. It tells apart what the router and what an engine answers.
--
-- A request that found no engine, or whose engine ended before its answer began, returns to the first nginx, which sends
-- it again. That cannot see the difference itself: nginx decides by the status alone, and engines use the same ones.
local relay = {}

-- smg's own errors -> the location of the first nginx that goes on with the request. Engines send no such header.
local AGAIN = {
    model_not_found = "@again",
    no_available_workers = "@again",
    -- The engine may have begun with the request.
    call_upstream_connection_failed = "@cut",
}

-- In the phase header_filter, for every answer of the router.
function relay.head()
    local code = ngx.header["x-smg-error-code"]
    ngx.header["X-Accel-Redirect"] = type(code) == "string" and AGAIN[code] or nil
end

return relay
