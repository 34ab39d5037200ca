-- Tokens of an answer, from the object "usage" that engines send at the end, or in Anthropic's streams also at the
-- beginning. Only these two parts of an answer are kept, whatever its length.
local adapters = require "qwen.adapters"

local usage = {}

local HEAD_BYTES = 2048
local TAIL_BYTES = 4096
-- A larger number is no count of tokens.
local MAX_TOKENS = 1e8

local FIELDS = {
    { '"prompt_tokens"%s*:%s*(%d+)', "into" },
    { '"input_tokens"%s*:%s*(%d+)', "into" },
    { '"completion_tokens"%s*:%s*(%d+)', "out" },
    { '"output_tokens"%s*:%s*(%d+)', "out" },
}

-- Before the first piece of an answer of an engine. `kind`: its Content-Type; the events of a stream are counted.
function usage.begin(ticket, kind)
    local stream = type(kind) == "string" and kind:find("text/event-stream", 1, true) ~= nil
    ticket.answer = { stream = stream, events = 0, head = nil, size = 0, parts = {}, count = 0, older = "" }
    ticket.answer.rename = ticket.adapter and adapters.renaming(ticket)
    ngx.ctx.answer = ticket.answer
end

function usage.add(answer, text)
    if not answer.head then
        answer.head = text:sub(1, HEAD_BYTES)
    end
    if answer.stream then
        local at = text:find("data: ", 1, true)
        while at do
            answer.events = answer.events + 1
            at = text:find("data: ", at + 6, true)
        end
    end
    answer.count = answer.count + 1
    answer.parts[answer.count] = #text > TAIL_BYTES and text:sub(-TAIL_BYTES) or text
    answer.size = answer.size + #answer.parts[answer.count]
    if answer.size >= TAIL_BYTES then
        answer.older = table.concat(answer.parts, "", 1, answer.count)
        answer.parts, answer.count, answer.size = {}, 0, 0
    end
end

-- The tokens {into =, out =}, either of which may be absent, or nil if the answer does not tell.
function usage.tokens(answer)
    local text = (answer.head or "") .. "\n" .. answer.older .. table.concat(answer.parts, "", 1, answer.count)
    local found
    -- Inside a JSON string the quotes are escaped, so that text of the model never matches.
    for object in text:gmatch('[{,]%s*"usage"%s*:%s*(%b{})') do
        for _, field in ipairs(FIELDS) do
            local number = tonumber(object:match(field[1]))
            if number and number <= MAX_TOKENS then
                found = found or {}
                found[field[2]] = number
            end
        end
    end
    return found
end

return usage
