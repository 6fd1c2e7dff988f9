// What the filters of a boolean column keep; the server filters, so the table itself never asks.
var dagfuncs = (window.dashAgGridFunctions = window.dashAgGridFunctions || {});
dagfuncs.isYes = (_, value) => value === true;
dagfuncs.isNo = (_, value) => value === false;
