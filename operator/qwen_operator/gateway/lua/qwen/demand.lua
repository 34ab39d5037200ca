-- Which models somebody asks for. The operator reads this page: it wakes the models that have no replica, and looks at
-- once at the engines of those that nobody used before.
local cjson = require "cjson.safe"

local demand = {}

-- A request is shown for so long.
local KEPT_SECONDS = 60

-- Model -> its requests that wait, as keys. Model -> when a request last found no replica, and when one last came.
local waiting = {}
local asked = {}
local came = {}
local forgot = 0

local function drop_old(times, now)
    for model, last in pairs(times) do
        if now - last > KEPT_SECONDS then
            times[model] = nil
        end
    end
end

local function forget(now)
    forgot = now
    drop_old(asked, now)
    drop_old(came, now)
end

-- Nobody may read the page. Without this, names that come and go would stay for ever.
local function note(times, model)
    local now = ngx.now()
    if now - forgot > KEPT_SECONDS then
        forget(now)
    end
    times[model] = now
end

-- Every request for a model.
function demand.come(model)
    note(came, model)
end

-- A request that found no replica.
function demand.ask(model)
    note(asked, model)
end

-- `ticket.hold`: since when it waits.
function demand.add(ticket)
    waiting[ticket.model] = waiting[ticket.model] or {}
    waiting[ticket.model][ticket] = true
end

function demand.remove(ticket)
    local tickets = waiting[ticket.model]
    tickets[ticket] = nil
    if not next(tickets) then
        waiting[ticket.model] = nil
    end
end

local function since(now, last)
    return last and math.max(0, now - last)
end

local function entry(now, model)
    local held, oldest = 0, 0
    for ticket in pairs(waiting[model] or {}) do
        held = held + 1
        oldest = math.max(oldest, now - ticket.hold)
    end
    return { held = held, oldest = oldest, asked = since(now, asked[model]), came = since(now, came[model]) }
end

function demand.page()
    local now, models = ngx.now(), {}
    forget(now)
    for _, names in ipairs({ asked, came, waiting }) do
        for model in pairs(names) do
            models[model] = models[model] or entry(now, model)
        end
    end
    ngx.header["Content-Type"] = "application/json"
    -- The pages of earlier versions show only requests that found no replica.
    ngx.say(cjson.encode({ models = models, hears = true }))
end

return demand
