-- The proxy's metrics in Prometheus' text format.
--
-- The label model has only names that a worker serves or served; anything else that a client writes counts under an
-- empty one. Together with the tenants, which are names of keys, this bounds the number of series. Names can change as
-- often as somebody edits servedNames, so those of one tenant have a bound of their own: nobody uses up the series of
-- the others.
local limits = require "qwen.limits"
local peers = require "qwen.peers"
local state = require "qwen.state"

local metrics = {}

local MAX_SERIES = 20000
local MAX_MODELS = 256

-- Name, type, help. A counter's name gets the suffix _total.
local FAMILIES = {
    { "qwen_gateway_requests", "counter", "Requests that ended, by tenant, model and status." },
    { "qwen_gateway_refusals", "counter", "Requests that the proxy refused, by tenant and reason." },
    { "qwen_gateway_request_seconds", "counter", "Seconds that requests held a slot of their tenant." },
    { "qwen_gateway_holds", "counter", "Requests that waited for a replica, by tenant and model." },
    { "qwen_gateway_hold_seconds", "counter", "Seconds that requests waited for a replica." },
    { "qwen_gateway_tokens", "counter", "Tokens that answers reported, by direction (in or out)." },
    { "qwen_gateway_uncounted_answers", "counter", "Answers that reported no tokens." },
}

local series = {}
local count = 0
-- Tenant -> its models, and their number.
local models_of = {}

local function escaped(value)
    return (value:gsub("[\\\"\n]", { ["\\"] = "\\\\", ['"'] = '\\"', ["\n"] = "\\n" }))
end

local function add(name, labels, amount)
    local family = series[name] or {}
    series[name] = family
    if not family[labels] then
        if count >= MAX_SERIES then
            return
        end
        count = count + 1
    end
    family[labels] = (family[labels] or 0) + amount
end

-- The model, or an empty one if the tenant has too many already.
local function bounded(tenant, model)
    local own = models_of[tenant] or { number = 0, names = {} }
    models_of[tenant] = own
    if not own.names[model] then
        if own.number >= MAX_MODELS then
            return ""
        end
        own.names[model], own.number = true, own.number + 1
    end
    return model
end

local function owner(tenant, model)
    model = bounded(tenant, model)
    return string.format('tenant="%s",model="%s"', escaped(tenant), escaped(model))
end

function metrics.ended(tenant, model, status)
    add("qwen_gateway_requests", owner(tenant, model) .. string.format(',code="%d"', status), 1)
end

function metrics.refused(tenant, reason)
    add("qwen_gateway_refusals", string.format('tenant="%s",reason="%s"', escaped(tenant), reason), 1)
end

function metrics.held(tenant, model, seconds)
    add("qwen_gateway_request_seconds", owner(tenant, model), seconds)
end

function metrics.hold(tenant, model)
    add("qwen_gateway_holds", owner(tenant, model), 1)
end

function metrics.hold_seconds(tenant, model, seconds)
    add("qwen_gateway_hold_seconds", owner(tenant, model), seconds)
end

-- `tokens` as usage.tokens gives them.
function metrics.tokens(tenant, model, tokens)
    if not tokens then
        add("qwen_gateway_uncounted_answers", owner(tenant, model), 1)
        return
    end
    add("qwen_gateway_tokens", owner(tenant, model) .. ',direction="in"', tokens.into or 0)
    add("qwen_gateway_tokens", owner(tenant, model) .. ',direction="out"', tokens.out or 0)
end

local function gauge(lines, name, help, value, label)
    lines[#lines + 1] = "# HELP " .. name .. " " .. help
    lines[#lines + 1] = "# TYPE " .. name .. " gauge"
    if type(value) == "number" then
        lines[#lines + 1] = name .. " " .. value
        return
    end
    for key, number in pairs(value) do
        lines[#lines + 1] = string.format('%s{%s="%s"} %d', name, label, escaped(key), number)
    end
end

function metrics.page()
    local lines = {}
    for _, family in ipairs(FAMILIES) do
        local name = family[1] .. "_total"
        lines[#lines + 1] = "# HELP " .. name .. " " .. family[3]
        lines[#lines + 1] = "# TYPE " .. name .. " " .. family[2]
        for labels, value in pairs(series[family[1]] or {}) do
            lines[#lines + 1] = string.format("%s{%s} %.14g", name, labels, value)
        end
    end
    gauge(lines, "qwen_gateway_running_requests", "Requests that hold a slot, by tenant.", limits.running, "tenant")
    gauge(lines, "qwen_gateway_held_requests", "Requests that wait for a replica, by model.", limits.held, "model")
    gauge(lines, "qwen_gateway_buffered_bytes", "Bytes of large request bodies that are held now.", limits.buffered)
    gauge(lines, "qwen_gateway_peers", "Other gateway pods whose part of the tenants' limits is known.", peers.count)
    local problems = state.settings.problems or 0
    gauge(lines, "qwen_gateway_settings_problems", "Entries of keys and tenants that are invalid now.", problems)
    gauge(lines, "qwen_gateway_settings_loads", "How often the proxy took over new keys or tenants.", state.loads)
    ngx.header["Content-Type"] = "text/plain; version=0.0.4"
    ngx.say(table.concat(lines, "\n"))
end

return metrics
