-- Tokens of an answer, from the object "usage" that engines send at the end, or in Anthropic's streams also at the
-- beginning. Only these two parts of an answer are kept, whatever its length.
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

-- `stream` is whether the answer is a stream of events, which are counted.
function usage.collector(stream)
    return { stream = stream, events = 0, head = nil, size = 0, parts = {}, count = 0, older = "" }
end

function usage.add(collector, text)
    if not collector.head then
        collector.head = text:sub(1, HEAD_BYTES)
    end
    if collector.stream then
        local at = text:find("data: ", 1, true)
        while at do
            collector.events = collector.events + 1
            at = text:find("data: ", at + 6, true)
        end
    end
    collector.count = collector.count + 1
    collector.parts[collector.count] = #text > TAIL_BYTES and text:sub(-TAIL_BYTES) or text
    collector.size = collector.size + #collector.parts[collector.count]
    if collector.size >= TAIL_BYTES then
        collector.older = table.concat(collector.parts, "", 1, collector.count)
        collector.parts, collector.count, collector.size = {}, 0, 0
    end
end

-- The tokens {into =, out =}, either of which may be absent, or nil if the answer does not tell.
function usage.tokens(collector)
    local text = (collector.head or "") .. "\n" .. collector.older .. table.concat(collector.parts, "", 1, collector.count)
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
