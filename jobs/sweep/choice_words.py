"""The words around a letter that `jobs.sweep.choices` knows, by what they say about it.

Each is the text of a regular expression without groups. Words of Latin letters are matched whole;
words of other scripts are matched wherever they stand. Languages: English, Chinese, Japanese,
Korean, German, French, Spanish, Portuguese, Russian, Italian, and the noun in some more.
"""

# ruff: noqa: RUF001


def _words(latin: str, other: str = "") -> str:
    """Join words that lines and `|` separate, the longest first."""
    split = [each.strip() for each in latin.replace("\n", "|").split("|") if each.strip()]
    whole = "|".join(sorted(split, key=len, reverse=True)).replace(" ", r"\s+")
    parts = sorted(other.split(), key=len, reverse=True)
    return "|".join([rf"\b(?:{whole})\b", *parts])


# What an answer is announced by.
FINAL = _words(
    """final answer | final choice | final decision | final conclusion | endgültige antwort
    finale antwort | réponse finale | réponse définitive | respuesta final
    respuesta definitiva | resposta final | resposta definitiva | risposta finale
    risposta definitiva | окончательный ответ | итоговый ответ | финальный ответ""",
    "最终答案 最終答案 最终选择 最終選擇 最終的な答え 最終的な回答 最終回答 최종\\s*(?:답변?|정답)",
)
ANSWER = _words(
    """answer | answers | ans | option | choice | correct one | solution | response | result
    conclusion | verdict | prediction | selection | final | decision | guess | antwort | lösung
    réponse | bonne réponse | respuesta | resposta | gabarito | risposta | ответ | odpowiedź
    odpověď | antwoord | svar | vastaus | cevap | jawaban | đáp án | відповідь""",
    "答案 正确选项 正確選項 正しい選択肢 正解 答え 回答 解答"
    " 정답 답변 답 الإجابة الجواب उत्तर คำตอบ",
)
# What stands between it and the letter: after an English noun one of these is needed.
IS = _words(
    """is | was | would be | could be | might be | may be | should be | must be | will be
    has to be | lautet | ist | wäre | est | serait | es | sería | seria | é | è | sarebbe | это
    будет | является""",
    "应该是 應該是 应为 應為 应是 是 为 為 选 選 は 은 는 : = → — –",
)
# Nouns that may stand directly before a letter, as in `option B`.
NOUN = _words(
    """option | choice | answer | antwort | réponse | opción | opção | alternativa | resposta
    respuesta | opzione | risposta | вариант | ответ""",
    "选项 選項 選択肢 선택지 보기 答案",
)
# Words that may stand between the parts of such a phrase and change nothing.
FILL = _words(
    """actually | then | thus | therefore | so | hence | clearly | definitely | certainly
    obviously | simply | probably | likely | most likely | indeed | again | still | just | only
    yes | ok | okay | the | number | letter | lettre | letra | lettera | буква | be | being
    it is | it's | that is | to be | with | i think | i believe | der | die | das | buchstabe
    wohl | la | le | el | lo | il | l | probablement | probablemente | provavelmente
    probabilmente | вероятно | скорее всего | maybe | perhaps | possibly | presumably | correct
    right | best""",
    "应该 應該 应当 可能 おそらく 選択肢 아마",
)
# A decision that needs no noun: `I choose B`.
CHOOSE = _words(
    """choose | chose | select | selected | pick | picked | go with | going with | went with
    opt for | opted for | settle on | settled on | vote for | i'd say | i would say | i'll say
    my guess is | i guess | we conclude | we get | it must be | it has to be | it should be
    it would be | it could be | it might be | it may be | it is | it's | must be | that's | so
    thus | therefore | hence | ich wähle | es ist | je choisis | c'est | elijo | escojo
    selecciono | es la | escolho | é a | scelgo | è la | выбираю | это""",
    "应选 應選 故选 故選 所以选 因此选 我选 选择 選擇 选 選 应该是 應該是"
    " そのため したがって 따라서",
)
# What is said after a letter that is the answer: `B is correct`.
CORRECT = (
    r"\b(?:is|would be|must be|seems|appears to be)"
    r"(?:\s+(?:also|clearly|definitely|probably|indeed|the|my|only|single|most|most likely))*"
    r"\s+(?:correct|right|best|true|accurate|appropriate|final answer|answer|solution)\b"
    r"|\bist\s+(?:die\s+)?(?:richtige?|korrekte?|antwort)\b"
    r"|\best\s+(?:la\s+)?(?:bonne|correcte?|juste|réponse)\b"
    r"|\bes\s+(?:la\s+)?(?:correct[ao]|respuesta)\b"
    r"|\bé\s+(?:a\s+)?(?:corret[ao]|certa|resposta)\b"
    r"|\bè\s+(?:la\s+)?(?:corrett[ao]|giusta|risposta)\b"
    r"|(?:\bявляется\s+)?\b(?:правильн|верн)(?:ый|ая|ое|о)\b"
    r"|(?:选项|選項)?(?:是|为|為)?(?:正确|正確|对的|對的|最合适|最合適|答案)"
    r"|(?:が|は)(?:正解|正しい|答え|適切)|(?:가|이)\s*(?:정답|맞|옳|답)"
)
# What comes before a letter, or several, that are not the answer.
NOT = _words(
    r"""not(?! only) | isn't | nor | neither | never | cannot be | can't be | couldn't be | rule out
    ruled out | rules out | ruling out | eliminate | eliminated | eliminates | eliminating | exclude
    excluded | excludes | excluding | reject | rejected | rejecting | discard | discarded | dismiss
    dismissed | rather than | instead of | unlike | except | except for | opposed to | than | over
    against | consider | considered | considering | nicht | kein | keine | weder | noch | pas
    ni | no es | no | não é | não | nem | non è | non | né | не""",
    "不是 并非 並非 不选 不選 排除 除了",
)
_IS_OR_SEEMS = "is|was|does|did|'s|seems|looks|can|could|has|ist|est|es|é|è"
_ARE = "are|were|do|did|seem|look|can|could|have|sind|sont|son|são|sono"
_BAD = (
    "not|wrong|incorrect|incorrectly|false|inaccurate|irrelevant|impossible|unlikely|ruled out"
    "|eliminated|excluded|out|falsch|faux|fausse|incorrecte|incorrecta|incorrecto|falsa|errada"
    "|incorreta|sbagliata|errata|scorretta|pas|nicht"
)
_FAILS = "isn't|doesn't|contradicts|conflicts|fails|не|неверн\\w*|неправильн\\w*"
# What is said after a letter that is not the answer, and after several.
WRONG_ONE = (
    rf"(?:\s*(?:{_IS_OR_SEEMS})\s+(?:\w+\s+){{0,2}}?(?:{_BAD})\b|\s+(?:{_FAILS})\b"
    r"|\s+(?:no|non)\s+[eè]s?\b|\s*[:—–-]\s*(?:no|not|false|wrong|incorrect)\b(?! +\w)"
    r"|\s*(?:选项|選項)?\s*(?:是|が|は|은|는|이|가)?\s*(?:错|錯|不|誤|間違|아니|아닙|틀)"
    r"|[^。.\n,]{0,8}?(?:ではなく?|ではあり|じゃなく?|아니|아닙))"
)
WRONG_ALL = (
    rf"(?:\s*(?:{_ARE})\s+(?:\w+\s+){{0,2}}?(?:{_BAD})\b|\s+(?:aren't|don't|cannot|can't)\b"
    r"|\s*(?:都)?(?:是)?(?:错|錯|不))"
)
BUT = _words("but | but rather | rather | it's | sondern | mais | sino | mas | ma | а", "而是")
OR = _words(
    "or | and | nor | as well as | vs | versus | und | oder | et | ou | y | o | e | и | или",
    "还是 還是 或者 或 和 与 與 または あるいは か と 또는 혹은 과 와 、 , / ; & \\+",
)
MAYBE = _words(
    """either | actually | or | and | maybe | perhaps | possibly | it | it's | could | might
    may | can | also | be | is | which | even | but | both | alternatively | although | though""",
)
# Before an announcement, in its clause: then it is a condition, a doubt, or of another answer.
UNLESS = _words(
    """not | never | doubt | doubtful | if | whether | unless | suppose | supposing | assume
    assuming | why | how | wrong | incorrect | false | other | another | worst | second | third
    next | least | alternative | cannot | choices | options | nicht | pas | wenn | falls | si
    se | falsche | falsch | mauvaise | не | неправильный | неверный | incorrecta | errada
    sbagliata""",
    "n't 不 错误 錯誤 如果 非 誤 間違 오답",
)
# What takes back all that was said before it.
TAKEN_BACK = (
    r"(?i:\bwait\b\s*(?:[,.!:;…—–-]|no\b)|\bscratch that\b|\bcorrection\s*[:,-]|\bmy mistake\b"
    r"|\bon second thoughts?\b|\bi was wrong\b|\bi made an? (?:mistake|error)\b|\bsorry\s*[,.-]"
    r"|\blet me (?:re-?\w+|correct|think again|check again|double)\b|\bi mean\b"
    r"|\bactually,? (?=(?:it|it's|no|i|the answer)\b)"
    r"|\b(?:moment|warte|attends|attendez|espera|espere|aspetta|подождите|стоп)\s*[,.!…-]"
    r"|(?:等等|不对|不對|等一下|更正|いや|待って|訂正|잠깐|아니)\s*[,、.!…:])"
    r"|(?i:[.,!?…—–-]\s*(?:no|nein|non|não|нет|actually)\b[,.:]?\s+)"
    r"(?=(?i:(?:it's|it is|the|wait|sorry|actually|answer|is|correct|option|c'est|es|die|la|это)"
    r"[,\s]+){0,5}\(?[A-Z]\b(?!\s+\w))"
)
# Words of an ordinary sentence that may follow a letter: `B because`.
AFTER = _words(
    """because | since | as | is | are | was | or | and | but | weil | denn | ist | oder | und
    parce | puisque | est | ou | et | porque | ya | pues | es | o | y | pois | é | e | perché
    poiché | è""",
)
# Characters of other scripts that may follow it at once: `B是`, but not `B超` (ultrasound).
AFTER_AT_ONCE = (
    r"[是选選项項为為因。、或和与與正对對错錯都不]|です|[だがはとかをでま입이가은는을를번와과또예]"
)
# Words before `B is correct`; after another word, such as in `statement B`, it is no option.
FREE = _words(
    """and | but | that | so | then | thus | therefore | hence | only | think | believe | say
    no | yes | because | since | dass | que | che | что | clearly""",
)
# In a sentence with one of these, the text of an option may be what is denied.
NEGATIVE = _words(
    """no | not | never | none | nothing | neither | nor | without | cannot | unclear | unsure
    or | whether | if | wrong | incorrect | false | except | nicht | kein | keine | pas | ne
    non | não | нет | не | oder | ou""",
    "n't 不 没 沒 非 无 無 ない ありません 아니 않 없",
)
