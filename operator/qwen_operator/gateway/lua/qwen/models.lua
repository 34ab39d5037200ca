-- Which models a tenant may ask for, and GET /v1/models.
local cjson = require "cjson.safe"

local answers = require "qwen.answers"
local state = require "qwen.state"

local models = {}

-- Whether a name matches a pattern, in which * stands for any text. Every other character stands for itself.
local function matches(pattern, name)
    local first = pattern:find("*", 1, true)
    if not first then
        return pattern == name
    end
    if pattern:sub(1, first - 1) ~= name:sub(1, first - 1) then
        return false
    end
    local at, rest = first, pattern:sub(first + 1)
    while true do
        local star = rest:find("*", 1, true)
        if not star then
            break
        end
        local _, stop = name:find(rest:sub(1, star - 1), at, true)
        if not stop then
            return false
        end
        at, rest = stop + 1, rest:sub(star + 1)
    end
    return #name - #rest + 1 >= at and (rest == "" or name:sub(-#rest) == rest)
end

function models.allowed(tenant, name)
    for _, pattern in ipairs(state.limits_of(tenant).models) do
        if matches(pattern, name) then
            return true
        end
    end
    return false
end

-- Adds the models for which a request waits, as the router would list them.
local function add_waiting(tenant, names, entries)
    local added = {}
    for name, waiting in pairs(state.waiting) do
        if not waiting.stopped and not entries[name] and models.allowed(tenant, name) then
            added[#added + 1] = name
        end
    end
    table.sort(added)
    for _, name in ipairs(added) do
        names[#names + 1] = name
        entries[name] = cjson.encode({ id = name, object = "model", created = 0, owned_by = "self_hosted" })
    end
    return names, entries
end

-- Adds the adapters that every replica of their model has.
local function add_adapters(tenant, names, entries)
    local added = {}
    for model, adapters in pairs(state.adapters) do
        local waiting = state.waiting[model]
        local served = waiting and not waiting.stopped or not waiting and state.models[model]
        for adapter, loaded in pairs(served and adapters or {}) do
            local name = model .. ":" .. adapter
            if loaded and models.allowed(tenant, name) then
                added[#added + 1] = name
                entries[name] = cjson.encode({ id = name, object = "model", created = 0, owned_by = "self_hosted", parent = model })
            end
        end
    end
    table.sort(added)
    for _, name in ipairs(added) do
        names[#names + 1] = name
    end
    return names, entries
end

-- The router's own list, without what the tenant may not ask for: name -> its entry as JSON.
local function visible(tenant)
    local names, entries = {}, {}
    local answer = ngx.location.capture("/-/models")
    -- 503 is smg's answer without a worker.
    if answer.status ~= 200 and answer.status ~= 503 then
        return answers.no_router()
    end
    local decoded = answer.status == 200 and cjson.decode(answer.body)
    local data = type(decoded) == "table" and type(decoded.data) == "table" and decoded.data or {}
    for _, model in ipairs(data) do
        if type(model.id) == "string" and state.models[model.id] and models.allowed(tenant, model.id) then
            names[#names + 1] = model.id
            entries[model.id] = cjson.encode(model)
        end
    end
    return add_adapters(tenant, add_waiting(tenant, names, entries))
end

function models.answer_list(tenant)
    local names, entries = visible(tenant)
    local parts = {}
    for _, name in ipairs(names) do
        parts[#parts + 1] = entries[name]
    end
    return answers.json('{"object":"list","data":[' .. table.concat(parts, ",") .. "]}")
end

function models.answer_one(tenant, name)
    local _, entries = visible(tenant)
    if entries[name] then
        return answers.json(entries[name])
    end
    return answers.no_model(name:sub(1, 200))
end

return models
