-- What the proxy knows: the digests of the keys, the tenants' limits, the served names.
--
-- It reads two files several times a second and takes a file over only if it is complete: settings.json from the
-- program that started nginx, and workers.json from the gateway's agent.
local cjson = require "cjson.safe"

local state = {
    settings = { ready = false, keys = {}, tenants = {}, defaults = {} },
    -- Served name -> true.
    models = {},
    loads = 0,
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

local function read_models()
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

function state.refresh()
    local settings = read("settings")
    if settings then
        state.settings = settings
        state.loads = state.loads + 1
    end
    read_models()
end

-- Whether a worker serves this name. An unknown name is looked up in the file again: it may be new.
function state.serves(model)
    if state.models[model] then
        return true
    end
    if ngx.now() - looked < PAUSE_SECONDS then
        return false
    end
    looked = ngx.now()
    read_models()
    return state.models[model] == true
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

function state.start(files)
    paths = files
    state.refresh()
    assert(ngx.timer.every(READ_SECONDS, function(premature)
        if not premature then
            state.refresh()
        end
    end))
end

return state
