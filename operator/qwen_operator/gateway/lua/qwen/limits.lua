-- The limits of the tenants: requests at once, requests and tokens a minute, bytes of bodies held, and the requests that
-- wait for a replica.
--
-- nginx runs one worker process, so that plain tables count for the whole pod. A worker that crashed begins with none.
-- What other pods count comes from qwen.peers.
local semaphore = require "ngx.semaphore"

local limits = {}

-- Tenant -> number of its requests that hold a slot.
limits.running = {}
-- Tenant -> number of those in other gateway pods.
limits.elsewhere = {}
-- What tenants have taken here of limits that count it: kind -> tenant -> number.
limits.spent = { requests = {}, tokens = {} }
-- All bodies together, and those of each tenant, in bytes.
limits.buffered = 0
-- Model -> number of requests that wait for its first replica, if there are any.
limits.held = {}

-- A body up to this size stays in memory. nginx's configuration has the same number.
limits.SMALL_BYTES = 65536

-- The engine reports the tokens. A compromised one must not shut a tenant out of all other models for days.
local MAX_DEBT_MINUTES = 60

local buffered_of = {}
-- Tenant -> number of its requests that wait for a slot.
local waiting_of = {}
local held_total = 0
-- Tenant -> number of all its requests that wait. Tenant and model -> number of those for this model.
local held_of = {}
local buckets = {}
local turns = {}

local function bucket(tenant, kind, per_minute)
    local key = kind .. " " .. tenant
    local now = ngx.now()
    local one = buckets[key]
    if not one then
        one = { level = per_minute, at = now }
        buckets[key] = one
    end
    one.level = math.min(per_minute, one.level + (now - one.at) * per_minute / 60)
    one.at = now
    return one
end

-- Seconds until the bucket has `needed` again, rounded up.
local function wait(one, needed, per_minute)
    return math.max(1, math.ceil((needed - one.level) * 60 / per_minute))
end

-- Takes something off the level of a tenant. The level may become a debt.
function limits.spend(kind, tenant, per_minute, count)
    local one = bucket(tenant, kind, per_minute)
    one.level = math.max(one.level - count, -MAX_DEBT_MINUTES * per_minute)
end

local function take(kind, tenant, per_minute, count)
    limits.spent[kind][tenant] = (limits.spent[kind][tenant] or 0) + count
    limits.spend(kind, tenant, per_minute, count)
end

function limits.take_slot(tenant, allowed)
    local running = limits.running[tenant] or 0
    if running + (limits.elsewhere[tenant] or 0) >= allowed then
        return false
    end
    limits.running[tenant] = running + 1
    return true
end

-- What the other pods have is known late, so a request that has room here waits a moment before it is refused. As many
-- requests of a tenant may wait as may run.
function limits.begin_wait(tenant, allowed)
    local waits = waiting_of[tenant] or 0
    if waits >= allowed or (limits.running[tenant] or 0) >= allowed then
        return false
    end
    waiting_of[tenant] = waits + 1
    return true
end

function limits.end_wait(tenant)
    waiting_of[tenant] = waiting_of[tenant] - 1
end

function limits.free_slot(tenant)
    limits.running[tenant] = limits.running[tenant] - 1
end

-- nil, or the seconds to wait. A limit of 0 does not exist.
function limits.take_request(tenant, per_minute)
    if per_minute == 0 then
        return nil
    end
    local one = bucket(tenant, "requests", per_minute)
    if one.level < 1 then
        return wait(one, 1, per_minute)
    end
    take("requests", tenant, per_minute, 1)
    return nil
end

-- nil, or the seconds to wait. Tokens are known only afterwards, so a tenant may run into debt and waits it out.
function limits.has_tokens(tenant, per_minute)
    if per_minute == 0 then
        return nil
    end
    local one = bucket(tenant, "tokens", per_minute)
    return one.level < 1 and wait(one, 1, per_minute) or nil
end

function limits.spend_tokens(tenant, per_minute, count)
    if per_minute > 0 then
        take("tokens", tenant, per_minute, count)
    end
end

-- Reserves room for a body. One tenant may hold half of the room.
function limits.take_room(tenant, bytes, room)
    local own = buffered_of[tenant] or 0
    if own + bytes > room / 2 then
        return false, "tenant"
    end
    if limits.buffered + bytes > room then
        return false, "gateway"
    end
    buffered_of[tenant] = own + bytes
    limits.buffered = limits.buffered + bytes
    return true
end

function limits.free_room(tenant, bytes)
    buffered_of[tenant] = buffered_of[tenant] - bytes
    limits.buffered = limits.buffered - bytes
end

-- Whether the tenant's turn came within so many seconds. Of one tenant, one request at a time may do long work in the
-- worker process. So the others wait for as many parts of such work as there are tenants, not as there are requests.
function limits.take_turn(tenant, seconds)
    turns[tenant] = turns[tenant] or semaphore.new(1)
    return turns[tenant]:wait(seconds)
end

function limits.end_turn(tenant)
    turns[tenant]:post(1)
end

local function half(number)
    return math.max(1, math.floor(number / 2))
end

-- A place to wait for a replica: at most `most` for a model and `total` in the pod. One tenant may have half of each.
-- Returns false and whose limit is reached, and that limit.
function limits.take_hold(tenant, model, most, total)
    local own = tenant .. "\n" .. model
    if (held_of[own] or 0) >= half(most) then
        return false, "tenant", half(most)
    elseif (limits.held[model] or 0) >= most then
        return false, "model", most
    elseif (held_of[tenant] or 0) >= half(total) then
        return false, "tenant", half(total)
    elseif held_total >= total then
        return false, "gateway", total
    end
    held_of[own] = (held_of[own] or 0) + 1
    held_of[tenant] = (held_of[tenant] or 0) + 1
    limits.held[model] = (limits.held[model] or 0) + 1
    held_total = held_total + 1
    return true
end

function limits.free_hold(tenant, model)
    local own = tenant .. "\n" .. model
    -- Names come and go, so none may stay behind.
    held_of[own] = held_of[own] > 1 and held_of[own] - 1 or nil
    limits.held[model] = limits.held[model] > 1 and limits.held[model] - 1 or nil
    held_of[tenant] = held_of[tenant] - 1
    held_total = held_total - 1
end

return limits
