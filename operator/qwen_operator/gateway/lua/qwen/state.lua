-- What the proxy knows: the digests of the keys, the tenants' limits, the served names.
--
-- It reads four files several times a second and takes a file over only if it is complete: settings.json and peers.json
-- from the program that started nginx, and workers.json and waiting.json from the gateway's agent.
local cjson = require "cjson.safe"
local peers = require "qwen.peers"

local state = {
    settings = { ready = false, keys = {}, tenants = {}, defaults = {} },
    -- Served name -> true.
    models = {},
    -- Served name without a worker that is ready -> stopped, stalled, startupSeconds, startedAt.
    waiting = {},
    -- Served name -> its adapters -> whether every replica has them. A name without adapters is not in it.
    adapters = {},
    loads = 0,
    hold = { seconds = 0, requests = 0, total = 0, grace = 0 },
    relay = { head_seconds = 0 },
}

local READ_SECONDS = 0.25
-- How long a name that is not known may not cause another reading of the file.
local PAUSE_SECONDS = 0.05

local paths = {}
local contents = {}
local looked = 0

local function read(name)
    local file = io.open(paths[name], "rb")
    if not file then
        return nil
    end
    local text = file:read("*a")
    file:close()
    if not text or text == contents[name] then
        return nil
    end
    local value = cjson.decode(text)
    if type(value) ~= "table" then
        return nil
    end
    contents[name] = text
    return value
end

local function read_adapters(file)
    local adapters = {}
    for name, loaded in pairs(type(file) == "table" and file or {}) do
        adapters[name] = type(loaded) == "table" and loaded or nil
    end
    state.adapters = adapters
end

local function read_waiting()
    local file = read("waiting")
    if not file or type(file.waiting) ~= "table" then
        return
    end
    local waiting = {}
    for name, one in pairs(file.waiting) do
        if type(one) == "table" and name ~= "unknown" then
            waiting[name] = {
                stopped = type(one.stopped) == "string" and one.stopped ~= "" and one.stopped or nil,
                stalled = one.stalled == true,
                startupSeconds = tonumber(one.startupSeconds) or 0,
                startedAt = tonumber(one.startedAt) or 0,
            }
        end
    end
    state.waiting = waiting
    read_adapters(file.adapters)
end

local function read_workers()
    local file = read("workers")
    if not file or type(file.workers) ~= "table" then
        return
    end
    local models = {}
    for _, worker in ipairs(file.workers) do
        -- For smg, the model "unknown" is that of any worker.
        if type(worker) == "table" and type(worker.model_id) == "string" and worker.model_id ~= "unknown" then
            models[worker.model_id] = true
        end
    end
    state.models = models
end

-- The agent writes a name that loses its last worker to waiting.json first. Read in the other order, such a name is
-- never in neither of the two.
local function read_models()
    read_workers()
    read_waiting()
end

function state.refresh()
    local settings = read("settings")
    if settings then
        state.settings = settings
        state.loads = state.loads + 1
    end
    read_models()
    local others = read("peers")
    if others then
        peers.hear(others, state.limits_of)
    end
    peers.drop_silent()
end

-- Whether every replica of the model has this adapter; nil if the model has no adapter of this name.
function state.adapter(model, adapter)
    local adapters = state.adapters[model]
    return adapters and adapters[adapter]
end

local function known(model, adapter)
    if adapter and state.adapter(model, adapter) == nil then
        return false
    end
    return state.models[model] ~= nil or state.waiting[model] ~= nil
end

-- Whether somebody serves this name, also if no worker is ready. An unknown name is looked up in the files again: it
-- may be new. `adapter`: the adapter of the model that is asked for; nil for the model itself.
function state.serves(model, adapter)
    if not known(model, adapter) then
        state.look()
    end
    return known(model, adapter)
end

-- Reads what the agent wrote, but not more often than every PAUSE_SECONDS.
function state.look()
    if ngx.now() - looked >= PAUSE_SECONDS then
        looked = ngx.now()
        read_models()
    end
end

-- The tenant whose key this is, or nil. Only digests are compared, so that the time tells nothing about a key.
function state.tenant_of(key)
    local settings = state.settings
    if not settings.salt then
        return nil
    end
    return settings.keys[ngx.encode_base64(ngx.hmac_sha1(settings.salt, key))]
end

-- What a tenant may do: its own limits, or the defaults.
function state.limits_of(tenant)
    return state.settings.tenants[tenant] or state.settings.defaults
end

-- `files`: the paths of the four files. `hold`: seconds, requests, total and grace, which qwen.hold explains. `relay`:
-- its socket, answer_seconds, tenant_header and passed_on, and head_seconds: after so many seconds of waiting a stream
-- gets its head (qwen.early), 0 for never.
function state.start(files, hold, relay)
    paths = files
    state.hold = hold
    state.relay = relay
    state.refresh()
    assert(ngx.timer.every(READ_SECONDS, function(premature)
        if not premature then
            state.refresh()
        end
    end))
end

return state
