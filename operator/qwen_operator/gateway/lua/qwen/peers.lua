-- What tenants take of their limits in other gateway pods. Each pod has the whole limits. As soon as it hears what the
-- others have taken, it takes that off its own levels. So all pods together keep to a limit, only some seconds late: what
-- was too much in that time is a debt in every pod, as for tokens.
--
-- A program beside nginx reads the other pods' pages and writes them into one file (gateway/peers.py).
local cjson = require "cjson.safe"
local limits = require "qwen.limits"

local peers = {}

-- How many other pods are known.
peers.count = 0

local PER_MINUTE = { requests = "requestsPerMinute", tokens = "tokensPerMinute" }
-- The file is written every second. Without it, nobody knows what the others do.
local SILENT_SECONDS = 10
-- A pod is new if it is younger than this process and than so many seconds. All that it has taken counts when it is
-- first heard. What an older pod took before that is no news.
local NEW_SECONDS = 120
local FORGET_SECONDS = 3600

local began = ngx.now()
local heard_at = 0
-- Pod -> what it had taken, and when that was heard.
local heard = {}

local function numbers(part)
    local found = {}
    for name, value in pairs(type(part) == "table" and part or {}) do
        found[name] = tonumber(value)
    end
    return found
end

local function take_off(kind, taken, before, limits_of)
    for tenant, number in pairs(taken) do
        local more = number - (before[tenant] or 0)
        local per_minute = limits_of(tenant)[PER_MINUTE[kind]] or 0
        if more > 0 and per_minute > 0 then
            limits.spend(kind, tenant, per_minute, more)
        end
    end
end

local function hear_one(id, page, now, limits_of)
    local before = heard[id]
    local age = tonumber(page.age) or 0
    local one = { requests = numbers(page.requests), tokens = numbers(page.tokens), at = now }
    if not before and age < NEW_SECONDS and age < now - began then
        before = { requests = {}, tokens = {} }
    end
    for kind in pairs(before and PER_MINUTE or {}) do
        take_off(kind, one[kind], before[kind], limits_of)
    end
    heard[id] = one
end

-- `file`: the pages of the others, by the id of the pod. `limits_of`: the limits of a tenant.
function peers.hear(file, limits_of)
    local now, running, count = ngx.now(), {}, 0
    for id, page in pairs(type(file.peers) == "table" and file.peers or {}) do
        if type(page) == "table" then
            count = count + 1
            hear_one(id, page, now, limits_of)
            for tenant, number in pairs(numbers(page.running)) do
                running[tenant] = (running[tenant] or 0) + number
            end
        end
    end
    for id, one in pairs(heard) do
        if now - one.at > FORGET_SECONDS then
            heard[id] = nil
        end
    end
    limits.elsewhere, peers.count, heard_at = running, count, now
end

-- The slots of a pod that is not heard any more count no longer.
function peers.drop_silent()
    if peers.count > 0 and ngx.now() - heard_at > SILENT_SECONDS then
        limits.elsewhere, peers.count = {}, 0
    end
end

-- What this pod tells the others. `id`: of the pod; its nginx may start again and then begins with nothing.
function peers.page(id)
    local running = {}
    for tenant, number in pairs(limits.running) do
        running[tenant] = number > 0 and number or nil
    end
    ngx.header["Content-Type"] = "application/json"
    ngx.say(cjson.encode({
        id = string.format("%s-%.3f", id, began),
        age = ngx.now() - began,
        running = running,
        requests = limits.spent.requests,
        tokens = limits.spent.tokens,
    }))
end

return peers
