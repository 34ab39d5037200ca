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
-- smg's error for an engine whose host is gone, so that no connection comes about within 10 s, and for one that answers
-- nothing within the time limit of all requests. The second must not be sent again.
local TIMED_OUT = "call_upstream_timeout"

-- For the errors of nginx itself. If no connection to the router came about, the router has not seen the request: it
-- starts, or starts again after a crash.
function relay.failed()
    local time = ngx.var.upstream_connect_time
    if ngx.status ~= 502 or (time and time ~= "-") then
        return ngx.exit(444)
    end
    ngx.ctx.again = true
    ngx.header["X-Accel-Redirect"] = "@again"
    ngx.header["Content-Length"] = 0
    return ngx.exit(ngx.HTTP_OK)
end

-- In the phase header_filter, for every answer of the router.
function relay.head()
    if ngx.ctx.again then
        return
    end
    local code = ngx.header["x-smg-error-code"]
    local location = type(code) == "string" and AGAIN[code] or nil
    local seconds = tonumber(ngx.var.upstream_header_time)
    if code == TIMED_OUT and seconds and seconds < ngx.var.qwen_request_seconds * 0.9 then
        location = "@cut"
    end
    ngx.header["X-Accel-Redirect"] = location
end

return relay
