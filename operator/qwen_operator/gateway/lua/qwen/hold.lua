-- Requests for a model without a replica that answers now: the only one ended, is replaced, or still starts.
--
-- Such a request waits here and not in the router, so it takes none of the router's places and memory. Its body lies in
-- nginx, as before every request. The client has got no part of an answer, except the head of a stream that waits long
-- (qwen.early).
--
-- state.hold has the bounds: `seconds` for one request, `requests` for one model, `total` for the pod. `grace`: the
-- seconds that nginx has at its end.
local answers = require "qwen.answers"
local demand = require "qwen.demand"
local early = require "qwen.early"
local limits = require "qwen.limits"
local metrics = require "qwen.metrics"
local state = require "qwen.state"

local hold = {}

local STEP_SECONDS = 0.2
-- The Retry-After of an answer when nobody knows how long the start takes.
local USUAL_SECONDS = 10
-- At its end, nginx refuses what still waits so many seconds before the kubelet cuts it.
local LAST_SECONDS = 5

-- The pauses before a request that the router gave back is sent again. nginx allows ten such turns for a request. A
-- kubelet that is gone is noticed after 40 s.
local PAUSES = { 0.5, 1, 2, 4, 8, 16, 16, 16 }
-- A request whose model lost its last replica so many times while it ran there is not sent again. It may be the cause.
local MAX_ENDS = 2

local ends_at

local function refuse(ticket, reason, seconds, message, code)
    metrics.refused(ticket.tenant, reason)
    return answers.refuse(503, message, { retry_after = seconds, code = code or "model_not_ready" })
end

-- The seconds that the planned start still takes, or nil if that is not known, or the start takes longer than planned.
-- While the model is being downloaded, the start is still to come.
local function remaining(waiting)
    local passed = waiting.startedAt > 0 and ngx.time() - waiting.startedAt or 0
    local left = waiting.startupSeconds - passed
    return left > 0 and left or nil
end

-- Ends a request for which waiting is of no use.
local function check(ticket, waiting)
    local model, seconds = ticket.model, remaining(waiting)
    if waiting.stopped then
        local message = string.format("The model '%s' is switched off: %s.", model, waiting.stopped)
        return refuse(ticket, "modelStopped", 60, message, "model_stopped")
    end
    if waiting.stalled then
        local message = "No replica of the model '%s' can start until somebody acts. The status of its QwenDeployment has the reason."
        return refuse(ticket, "modelStalled", 60, string.format(message, model))
    end
    local most = state.hold.seconds
    if most == 0 then
        local message = "The model '%s' has no replica that answers at the moment. Try again in %d s."
        return refuse(ticket, "modelNotReady", seconds or USUAL_SECONDS, string.format(message, model, seconds or USUAL_SECONDS))
    end
    local patience = ticket.patience and ticket.patience - ngx.now() or most
    if seconds and not ticket.absent and seconds > patience then
        local message = "The model '%s' starts and needs about %d s more. Requests wait at most %d s. Try again in %d s."
        return refuse(ticket, "modelNotReady", seconds, string.format(message, model, seconds, most, seconds))
    end
end

local function take(ticket, waiting)
    if ticket.hold then
        return
    end
    local granted, whose, most = limits.take_hold(ticket.tenant, ticket.model, state.hold.requests, state.hold.total)
    if granted then
        ticket.hold = ngx.now()
        ticket.began = ticket.began or ticket.hold
        ticket.patience = ticket.patience or ngx.now() + state.hold.seconds
        demand.add(ticket)
        return metrics.hold(ticket.tenant, ticket.name)
    end
    local seconds = waiting and remaining(waiting) or USUAL_SECONDS
    local words = ({ tenant = "for tenant " .. ticket.tenant, model = "for it", gateway = "in the gateway" })[whose]
    local message = "The model '%s' has no replica that answers yet, and %d requests wait %s, the most that may. Try again in %d s."
    return refuse(ticket, "holdFull", seconds, string.format(message, ticket.model, most, words, seconds))
end

local function check_time(ticket)
    if ngx.worker.exiting() then
        -- nginx runs no timers any more.
        state.look()
        ends_at = ends_at or ngx.now() + state.hold.grace - LAST_SECONDS
        if ngx.now() >= ends_at then
            return refuse(ticket, "gatewayEnds", 1, "This gateway pod ends. Try again: another one answers.")
        end
    end
    if ngx.now() >= ticket.patience then
        local message = "The model '%s' had no replica that answers for %d s. Try again in %d s."
        return refuse(ticket, "holdTimeout", USUAL_SECONDS, string.format(message, ticket.model, state.hold.seconds, USUAL_SECONDS))
    end
end

-- Returns when the model has a replica that answers. Otherwise the request ends here. `resume`: when to go on if no
-- replica was seen to be missing.
function hold.wait(ticket, resume)
    local waiting = state.waiting[ticket.model]
    while waiting or (resume and not ticket.absent and ngx.now() < resume) do
        if waiting then
            if not ticket.absent and not waiting.stopped then
                -- Also if it may not wait: a start that takes longer than requests wait goes on without them.
                demand.ask(ticket.model)
            end
            check(ticket, waiting)
            ticket.absent = true
        end
        take(ticket, waiting)
        check_time(ticket)
        early.beat(ticket)
        ngx.sleep(STEP_SECONDS)
        waiting = state.waiting[ticket.model]
    end
    hold.release(ticket)
    local loaded = not ticket.adapter or state.adapter(ticket.model, ticket.adapter)
    if not state.models[ticket.model] or loaded == nil then
        metrics.refused(ticket.tenant, "model")
        return answers.no_model(ticket.name)
    end
    if not loaded then
        -- A replica without the adapter would refuse the request.
        local message = "Not every replica of the model '%s' has the adapter '%s' yet. Try again in %d s."
        return refuse(ticket, "modelNotReady", USUAL_SECONDS, string.format(message, ticket.model, ticket.adapter, USUAL_SECONDS))
    end
end

-- Waits with a request that the router gave back. `cut`: an engine may have begun with it.
function hold.again(ticket, cut)
    ticket.tries = (ticket.tries or 0) + 1
    local pause = PAUSES[ticket.tries]
    if state.hold.seconds == 0 or not pause then
        local message = "The gateway cannot reach a replica of the model '%s' at the moment. Try again in %d s."
        return refuse(ticket, "modelNotReady", USUAL_SECONDS, string.format(message, ticket.model, USUAL_SECONDS))
    end
    ticket.absent = nil
    -- The router may know that the engine is gone, and give the request back again, before the agent does.
    ticket.begun = ticket.begun or cut
    hold.wait(ticket, ngx.now() + pause)
    if ticket.begun and ticket.absent then
        ticket.ends, ticket.begun = (ticket.ends or 0) + 1, false
    end
    if (ticket.ends or 0) >= MAX_ENDS then
        metrics.refused(ticket.tenant, "replicaEnded")
        if not ngx.headers_sent then
            -- OpenAI's clients would send it again.
            ngx.header["x-should-retry"] = "false"
        end
        local message = "The replica of the model '%s' ended %d times while it had this request. It is not sent again."
        return answers.refuse(500, string.format(message, ticket.model, MAX_ENDS), { code = "replica_ended" })
    end
end

-- The request does not wait any more.
function hold.release(ticket)
    if ticket.hold then
        limits.free_hold(ticket.tenant, ticket.model)
        demand.remove(ticket)
        metrics.hold_seconds(ticket.tenant, ticket.name, ngx.now() - ticket.hold)
        ticket.hold = nil
    end
end

return hold
