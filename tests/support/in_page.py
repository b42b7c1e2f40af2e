"""JavaScript that tests run in a page to look at it."""

_NAME = """
const nameOf = (element) => element.tagName.toLowerCase() + (element.id ? "#" + element.id : "")
    + [...element.classList].map((one) => "." + one).join("");
const wordsOf = (element) => (element.textContent || element.value || element.getAttribute("aria-label") || "")
    .trim().replace(/\\s+/g, " ").slice(0, 40);
"""

OVERFLOW = f"""(() => {{
    {_NAME}
    const width = document.documentElement.clientWidth, found = [];
    const styles = new Map();
    const styleOf = (element) => {{
        if (!styles.has(element)) styles.set(element, getComputedStyle(element));
        return styles.get(element);
    }};
    const isHidden = (element) => {{  // nothing, or for screen readers alone
        const box = element.getBoundingClientRect(), style = styleOf(element);
        return style.visibility === "hidden" || box.width <= 1 || box.height <= 1 || box.right <= 0
            || !element.checkVisibility({{checkOpacity: true, checkVisibilityCSS: true}});
    }};
    const parents = function* (element) {{
        for (let one = element.parentElement; one; one = one.parentElement) yield one;
    }};
    const isRoot = (one) => one === document.body || one === document.documentElement;
    const scrolls = (one) => !isRoot(one) && ["auto", "scroll"].includes(styleOf(one).overflowX)
        && one.scrollWidth > one.clientWidth;
    const textsOf = (element) => [...element.childNodes].filter((one) => one.nodeType === 3 && one.data.trim());
    const say = (element, what) => found.push(`${{nameOf(element)}} "${{wordsOf(element)}}" ${{what}}`);
    for (const element of document.body.querySelectorAll("*")) {{
        if (["SCRIPT", "STYLE", "TEMPLATE", "OPTION"].includes(element.tagName) || isHidden(element)) continue;
        const box = element.getBoundingClientRect();
        const svg = element.ownerSVGElement;
        if (svg) {{
            if (element.tagName !== "text" || styleOf(svg).overflowX === "visible") continue;
            const frame = svg.getBoundingClientRect();
            if (box.right > frame.right + 1 || box.left < frame.left - 1 || box.bottom > frame.bottom + 1
                || box.top < frame.top - 1) say(element, "is text cut off by its picture");
            continue;
        }}
        const around = [...parents(element)];
        const isCut = around.some((one) => !isRoot(one) && styleOf(one).overflowX !== "visible");
        if (!isCut && !around.some(scrolls)) {{
            if (box.right > width + 1) say(element, `ends ${{Math.round(box.right - width)}} px beyond the right edge`);
            if (box.left < -1) say(element, `begins ${{Math.round(-box.left)}} px before the left edge`);
        }}
        const style = styleOf(element), hides = (way) => ["hidden", "clip"].includes(way);
        if (element.clientWidth > 0 && !["INPUT", "TEXTAREA", "SELECT"].includes(element.tagName)) {{
            const across = element.scrollWidth - element.clientWidth;
            const down = element.scrollHeight - element.clientHeight;
            if (hides(style.overflowX) && across > 1) say(element, `cuts ${{across}} px off at its right`);
            if (hides(style.overflowY) && down > 1) say(element, `cuts ${{down}} px off at its foot`);
        }}
        for (const text of textsOf(element)) {{  // wider than its box, and a box around it cuts it
            if (around.some(scrolls) || scrolls(element)) break;
            const range = document.createRange();
            range.selectNodeContents(text);
            const right = range.getBoundingClientRect().right;
            if (right > width + 1 && box.right <= width + 1) {{
                say(element, `has text that ends ${{Math.round(right - width)}} px beyond the right edge`);
                break;
            }}
        }}
    }}
    return found;
}})()"""

FROM_THE_TOP = """(() => {
    window.rloraFocused = new Set();
    document.body.tabIndex = -1;
    document.body.focus();
    document.body.removeAttribute("tabindex");
    window.scrollTo(0, 0);
})()"""

FOCUSED = f"""(() => {{
    {_NAME}
    const element = document.activeElement;
    if (!element || element === document.body || window.rloraFocused.has(element)) return null;
    window.rloraFocused.add(element);
    return `${{nameOf(element)}} "${{wordsOf(element)}}"`;
}})()"""

PAINTED = """new Promise((done) => {
    const first = () => performance.getEntriesByName("first-contentful-paint")[0];
    if (first()) return done(first().startTime);
    new PerformanceObserver(() => first() && done(first().startTime)).observe({type: "paint", buffered: true});
})"""

AXE_RUN = """(async () => {
    const tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"];
    const rules = {"focus-order-semantics": {enabled: true}};
    for (const rule of %(but)s) rules[rule] = {enabled: false};
    const found = await axe.run(%(within)s || document, {
        runOnly: {type: "tag", values: tags}, rules, resultTypes: ["violations"],
    });
    return found.violations.map((one) => ({
        rule: one.id, impact: one.impact || "", help: one.help,
        nodes: one.nodes.map((node) => [node.target.flat().join(" "), node.html, node.failureSummary]),
    }));
})()"""
