-- Which models somebody asks for while no replica answers. The operator reads this page and wakes them.
local cjson = require "cjson.safe"

local demand = {}

-- A request that did not wait is shown for so long.
local ASKED_SECONDS = 60

-- Model -> its requests that wait, as keys. Model -> when a request last found no replica.
local waiting = {}
local asked = {}
local forgot = 0

local function forget(now)
    forgot = now
    for model, last in pairs(asked) do
        if now - last > ASKED_SECONDS then
            asked[model] = nil
        end
    end
end

-- The operator reads the page only if a model may sleep. Without it, names that come and go would stay for ever.
function demand.ask(model)
    local now = ngx.now()
    if now - forgot > ASKED_SECONDS then
        forget(now)
    end
    asked[model] = now
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

local function entry(now, tickets, last)
    local held, oldest = 0, 0
    for ticket in pairs(tickets or {}) do
        held = held + 1
        oldest = math.max(oldest, now - ticket.hold)
    end
    return { held = held, oldest = oldest, asked = last and math.max(0, now - last) }
end

function demand.page()
    local now, models = ngx.now(), {}
    forget(now)
    for model, last in pairs(asked) do
        models[model] = entry(now, waiting[model], last)
    end
    for model, tickets in pairs(waiting) do
        models[model] = models[model] or entry(now, tickets)
    end
    ngx.header["Content-Type"] = "application/json"
    ngx.say(cjson.encode({ models = models }))
end

return demand
